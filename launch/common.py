"""Shared code of the launchers: options, signal forwarding, restarts, YAML.

Uses only the standard library, so any Python 3.11 can launch, without JAX or this package.
"""

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

# Exit codes of simpo_jax.main. Any other failure is a crash, which a restart may fix.
USER_ERROR = 2  # a restart would fail again
RESUMABLE = 75  # a lost peer, a hang, a preemption
COORDINATOR_PORT = 8476


class UserError(Exception):
  """A mistake of the user; its message is one line that says how to fix it."""


class _Parser(argparse.ArgumentParser):
  def error(self, message: str) -> NoReturn:
    if message.startswith("unrecognized arguments"):
      message += "; the flags of simpo_jax.main go after --"
    raise UserError(f"{message}; see --help")


def parser(doc: str | None, python: str, max_restarts: int) -> argparse.ArgumentParser:
  """Returns a parser with the options of every launcher; --help prints `doc`."""
  out = _Parser(
    usage="python launch/%(prog)s OPTIONS -- FLAGS OF simpo_jax.main",
    description=doc,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  out.add_argument("--dry-run", action="store_true", help="print what would run; run nothing")
  out.add_argument(
    "--max-restarts",
    type=nonnegative_int,
    default=max_restarts,
    metavar="N",
    help=f"after a failure, run the same command again, up to N times (default {max_restarts})",
  )
  out.add_argument(
    "--python",
    default=python,
    metavar="PATH",
    help=f"the interpreter that runs -m simpo_jax.main (default {python})",
  )
  return out


def add_env(to: argparse.ArgumentParser) -> None:
  """Adds --env, for launchers whose processes do not inherit this environment."""
  to.add_argument(
    "--env",
    type=_variable,
    action="append",
    default=[],
    metavar="KEY[=VALUE]",
    help="an environment variable of the run; without =VALUE, copied from here; repeatable",
  )


def parse(
  parser: argparse.ArgumentParser, argv: Sequence[str]
) -> tuple[argparse.Namespace, list[str]]:
  """Splits `argv` at the first `--` into (launcher options, flags of simpo_jax.main).

  Raises:
    UserError: an invalid option, no flags, or --max-restarts without a --workdir to resume.
  """
  cut = argv.index("--") if "--" in argv else len(argv)
  options = parser.parse_args(argv[:cut])
  flags = list(argv[cut + 1 :])
  if not flags:
    raise UserError(
      "no flags for simpo_jax.main; put them after --, such as: -- --config=configs/m11.py"
    )
  if options.max_restarts and not any(re.match(r"--?workdir(=.|$)", flag) for flag in flags):
    raise UserError(
      f"--max-restarts={options.max_restarts} needs --workdir=DIR after --, since a restart "
      "resumes that folder; name one, or say --max-restarts=0"
    )
  return options, flags


def main_command(python: str, flags: Sequence[str]) -> list[str]:
  """Returns the command line, which is the same for every process on every host."""
  return [python, "-m", "simpo_jax.main", *flags]


def nonnegative_int(text: str) -> int:
  """Parses an integer option; raises argparse.ArgumentTypeError below 0."""
  if not re.fullmatch(r"\d+", text):
    raise argparse.ArgumentTypeError(f"expected a whole number from 0, not {text!r}")
  return int(text)


def positive_int(text: str) -> int:
  """Parses an integer option; raises argparse.ArgumentTypeError below 1."""
  if not re.fullmatch(r"0*[1-9]\d*", text):
    raise argparse.ArgumentTypeError(f"expected a whole number from 1, not {text!r}")
  return int(text)


def _variable(text: str) -> tuple[str, str]:
  key, equals, value = text.partition("=")
  if not re.fullmatch(r"[A-Za-z_]\w*", key, re.ASCII):
    raise argparse.ArgumentTypeError(f"expected KEY=VALUE or KEY, not {text!r}")
  if not equals and key not in os.environ:
    raise argparse.ArgumentTypeError(f"{key} is not set here; set it, or say {key}=VALUE")
  return key, value if equals else os.environ[key]


def say(message: str) -> None:
  """Prints a message of the launcher to stderr, marked to set it apart from the run's output."""
  print(f"[launch] {message}", file=sys.stderr, flush=True)


def exit_code(returncode: int) -> int:
  """Converts Popen's `returncode` to a shell's exit code: 128 + n if killed by signal n."""
  return 128 - returncode if returncode < 0 else returncode


@contextlib.contextmanager
def forward_signals(deliver: Callable[[int], object]) -> Iterator[list[int]]:
  """Calls `deliver` for each SIGINT and SIGTERM; yields the list that collects them."""
  received: list[int] = []

  def handle(signum: int, _: FrameType | None) -> None:
    received.append(signum)
    deliver(signum)

  before = {s: signal.signal(s, handle) for s in (signal.SIGINT, signal.SIGTERM)}
  try:
    yield received
  finally:
    for signum, handler in before.items():
      signal.signal(signum, handler)


def start(argv: Sequence[str], **kwargs: Any) -> subprocess.Popen:
  """Starts a command (`kwargs` as for Popen); raises UserError if that is impossible."""
  try:
    return subprocess.Popen(argv, **kwargs)
  except OSError as e:
    raise UserError(f"cannot run {argv[0]}: {e.strerror}; install it or put it on PATH") from e


def run(argv: Sequence[str], text: str | None = None) -> tuple[int, bool]:
  """Runs a command with `text` as its stdin; returns (exit code, whether a signal arrived)."""
  children: list[subprocess.Popen] = []
  with forward_signals(lambda s: [child.send_signal(s) for child in children]) as received:
    children.append(start(argv, stdin=None if text is None else subprocess.PIPE, text=True))
    children[0].communicate(text)
  return exit_code(children[0].returncode), bool(received)


def with_restarts(attempt: Callable[[int], int], limit: int, received: list[int]) -> int:
  """Calls attempt(0), attempt(1), ... and returns the last exit code.

  Stops after a success, a user error, a signal to the launcher, or `limit` restarts.
  """
  number = 0
  while True:
    code = attempt(number)
    if code in (0, USER_ERROR) or received or number == limit:
      return code
    number += 1
    say(f"exit code {code}; restart {number} of {limit}")


def to_yaml(value: dict | list, depth: int = 0) -> str:
  """Serializes nested dicts, lists, strings, numbers and booleans as YAML.

  Printable strings that end in a newline, such as scripts, become block scalars. All others are
  quoted as in JSON, so YAML never interprets them.
  """
  pad = "  " * depth
  lines = []
  for key, item in value.items() if isinstance(value, dict) else ((None, v) for v in value):
    head = f"{pad}-" if key is None else f"{pad}{key}:"
    if isinstance(item, dict | list) and item:
      body = to_yaml(item, depth + 1)
      lines.append(f"{head} {body.lstrip()}" if key is None else f"{head}\n{body}")
    elif isinstance(item, str) and item.endswith("\n") and item.replace("\n", "").isprintable():
      indented = "".join(f"{pad}  {line}" for line in item.splitlines(keepends=True))
      lines.append(f"{head} |\n{indented}")
    else:
      lines.append(f"{head} {json.dumps(item, ensure_ascii=False)}\n")
  return "".join(lines)


def entry(main: Callable[[Sequence[str]], int]) -> None:
  """Exits with main's exit code; prints a UserError as one line and exits with 2."""
  try:
    sys.exit(main(sys.argv[1:]))
  except UserError as e:
    print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
    sys.exit(USER_ERROR)
  except BrokenPipeError:  # the reader is gone, as with `| head`
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(128 + signal.SIGPIPE)
