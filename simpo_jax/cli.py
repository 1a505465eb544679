"""Command-line parsing; a user error is reported as one line that contains the fix."""

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
  separate_lists,
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
  """An absl `flags_parser` with helpful errors; exits with 0 after --help, 2 after a user error.

  Args:
    allowed: the program's own flags, in addition to the --config.* overrides.

  Returns:
    The positional arguments, with argv[0] first.
  """
  if any(a in HELP_FLAGS for a in argv[1:]):
    print(help_text(allowed))
    sys.exit(0)
  try:
    return _parse(argv, allowed)
  except UserError as e:
    if any(a in ("--debug", "--debug=true", "-debug") for a in argv):
      raise
    exit_with_error(e)


def run_command(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
  """Runs a command's `main(argv)`.

  A UserError ends the process with one line on stderr, or with its stack trace under --debug.
  """
  logging.set_verbosity(logging.ERROR)
  interrupts.install_handler()
  try:
    main(argv)
  except KeyboardInterrupt:
    interrupts.exit_now()
  except UserError as e:
    if flags.FLAGS.debug:
      raise
    exit_with_error(e)


def run_program(main: Callable[[Sequence[str]], None], allowed: Sequence[str]) -> None:
  """Parses the flags and runs `main(argv)`; the entry point of `python -m simpo_jax.COMMAND`."""
  app.run(
    lambda argv: run_command(main, argv), flags_parser=lambda argv: parse_flags(argv, allowed)
  )


def refuse_arguments(argv: Sequence[str], example: str) -> None:
  """Raises a UserError if there are positional arguments.

  Args:
    example: a flag as it would be typed, for the message.
  """
  if len(argv) > 1:
    raise UserError(f"unexpected argument {argv[1]!r}; flags look like {example}")


def exit_with_error(error: UserError) -> NoReturn:
  """Prints an error as one line on stderr and exits with its exit code."""
  print(f"error: {one_line(error)}", file=sys.stderr)
  sys.exit(error.exit_code)


def help_text(allowed: Sequence[str] = PROGRAM_FLAGS) -> str:
  """Returns the text of --help: the program's docstring, its flags, and all config fields."""
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
  argv = separate_lists(argv)
  path = check_arguments(argv, allowed)
  try:
    with _current_folder_importable() if path else contextlib.nullcontext():
      rest = flags.FLAGS(list(argv))
  except UserError:
    raise
  except flags.UnrecognizedFlagError as e:
    near = did_you_mean(e.flagname, allowed) or "; --help lists them all"
    raise UserError(f"--{e.flagname}: there is no such flag{near}") from e
  except Exception as e:  # absl's errors, and any that the code of the config file raises
    raise config_error(path, e) or UserError(f"{one_line(e)}; see --help") from e
  if path is not None:
    check_config(path, flags.FLAGS["config"].value)
    check_schedule(
      path, flags.FLAGS["config"].value, {name for name, _ in arguments(argv, allowed)}
    )
  return rest


@contextlib.contextmanager
def _current_folder_importable():
  """Puts the current folder on the import path, so that a config file can import modules there.

  It is not on the path otherwise; see `simpo_jax/__init__.py`.
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
