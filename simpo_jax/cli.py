"""Command-line parsing whose mistakes are one line with the fix in it."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging

from simpo_jax import interrupts
from simpo_jax.config import did_you_mean
from simpo_jax.errors import UserError, one_line
from simpo_jax.flag_checks import (
  HELP_FLAGS,
  arguments,
  check_arguments,
  check_config,
  check_schedule,
  config_error,
)
from simpo_jax.settings import FIELDS
from simpo_jax.storage.paths import plain

PROGRAM_FLAGS = (
  "config",
  "workdir",
  "into_existing",
  "debug",
  "distributed",
  "coordinator_address",
  "num_processes",
  "process_id",
)


def parse_flags(argv: Sequence[str], allowed: Sequence[str] = PROGRAM_FLAGS) -> Sequence[str]:
  """An absl `flags_parser` that explains itself: exit code 0 after --help, 2 after a mistake.

  Args:
    allowed: the program's flags beside those of the config.
  """
  if any(a in HELP_FLAGS for a in argv[1:]):
    print(help_text(allowed))
    sys.exit(0)
  try:
    return _parse(argv, allowed)
  except UserError as e:
    if any(a in ("--debug", "--debug=true", "-debug") for a in argv):
      raise
    fail(e)


def answering(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
  """Runs a command; a user's mistake ends it with one line, or with --debug its stack trace."""
  logging.set_verbosity(logging.ERROR)
  interrupts.deliver()
  try:
    main(argv)
  except KeyboardInterrupt:
    interrupts.end()
  except UserError as e:
    if flags.FLAGS.debug:
      raise
    fail(e)


def run_program(main: Callable[[Sequence[str]], None], allowed: Sequence[str]) -> None:
  """What `python -m` runs: `main(argv)` with its flags parsed; see `parse_flags`, `answering`."""
  app.run(lambda argv: answering(main, argv), flags_parser=lambda argv: parse_flags(argv, allowed))


def refuse_arguments(argv: Sequence[str], example: str) -> None:
  """Raises a UserError if anything is there but flags.

  Args:
    example: of a flag, as it would be typed.
  """
  if len(argv) > 1:
    raise UserError(f"unexpected argument {argv[1]!r}; flags look like {example}")


def fail(error: UserError) -> NoReturn:
  """Ends the process with one line on stderr and the error's exit code."""
  print(f"error: {one_line(error)}", file=sys.stderr)
  sys.exit(error.exit_code)


def help_text(allowed: Sequence[str] = PROGRAM_FLAGS) -> str:
  """What --help prints: the program's docstring, its flags, and every field of a config."""
  lines = [(sys.modules["__main__"].__doc__ or "").strip(), "", "Flags:"]
  lines += [f"  --{name}: {flags.FLAGS[name].help}" for name in allowed if name in flags.FLAGS]
  if "config" not in allowed:
    return "\n".join(lines)
  lines += ["", "Config fields and their defaults:"]
  for field in FIELDS.values():
    line = f"  --config.{field.name}={field.default}"
    choices = f" One of: {', '.join(field.choices)}." if field.choices else ""
    lines.append(f"{line:<44}  {field.meaning}{choices}")
  return "\n".join(lines)


def _parse(argv: Sequence[str], allowed: Sequence[str]) -> Sequence[str]:
  path = check_arguments(argv, allowed)
  try:
    with _importing_from_here() if path else contextlib.nullcontext():
      rest = flags.FLAGS(list(argv))
  except UserError:
    raise
  except flags.UnrecognizedFlagError as e:
    near = did_you_mean(e.flagname, allowed) or "; --help lists them all"
    raise UserError(f"--{e.flagname}: there is no such flag{near}") from e
  except Exception as e:  # absl's own errors, and whatever the code in the config file raises
    raise config_error(path, e) or UserError(f"{one_line(e)}; see --help") from e
  if path is not None:
    check_config(path, flags.FLAGS["config"].value)
    check_schedule(
      path, flags.FLAGS["config"].value, {name for name, _ in arguments(argv, allowed)}
    )
  return rest


@contextlib.contextmanager
def _importing_from_here():
  """Lets a config file import what lies in the current folder and is not installed.

  For the commands themselves that folder is not on the path (`simpo_jax/__init__.py`).
  """
  here = str(plain("."))
  if here in sys.path:
    yield
    return
  sys.path.append(here)
  try:
    yield
  finally:
    sys.path.remove(here)
