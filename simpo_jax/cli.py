"""Command-line parsing whose mistakes are one line with the fix in it."""

import ast
import inspect
import os
import pathlib
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

import ml_collections
from absl import app, flags, logging

from simpo_jax.config import default_config, did_you_mean, flatten
from simpo_jax.config_check import kind_problem
from simpo_jax.errors import INTERRUPTED, UserError, one_line, shown
from simpo_jax.paths import check_path

OWN_FLAGS = (
  "config",
  "workdir",
  "debug",
  "distributed",
  "coordinator_address",
  "num_processes",
  "process_id",
)
_HELP = ("-h", "--h", "-help", "--help", "--helpshort", "--helpfull")


def parse_flags(argv: Sequence[str], own: Sequence[str] = OWN_FLAGS) -> Sequence[str]:
  """An absl `flags_parser` that explains itself: exit code 0 after --help, 2 after a mistake.

  Args:
    own: the program's flags beside those of the config.
  """
  if any(a in _HELP for a in argv[1:]):
    print(help_text(own))
    sys.exit(0)
  try:
    return _parse(argv, own)
  except UserError as e:
    if any(a in ("--debug", "--debug=true", "-debug") for a in argv):
      raise
    fail(e)


def answering(main: Callable[[Sequence[str]], None], argv: Sequence[str]) -> None:
  """Runs a command; a user's mistake ends it with one line, or with --debug its stack trace."""
  logging.set_verbosity(logging.ERROR)
  heed_interrupts()
  try:
    main(argv)
  except KeyboardInterrupt:
    end_interrupted()
  except UserError as e:
    if flags.FLAGS.debug:
      raise
    fail(e)


def run_program(main: Callable[[Sequence[str]], None], own: Sequence[str]) -> None:
  """What `python -m` runs: `main(argv)` with its flags parsed; see `parse_flags`, `answering`."""
  app.run(lambda argv: answering(main, argv), flags_parser=lambda argv: parse_flags(argv, own))


def refuse_arguments(argv: Sequence[str], example: str) -> None:
  """Raises a UserError if anything is there but flags.

  Args:
    example: of a flag, as it would be typed.
  """
  if len(argv) > 1:
    raise UserError(f"unexpected argument {argv[1]!r}; flags look like {example}")


def fail(error: UserError) -> None:
  """Ends the process with one line on stderr and the error's exit code."""
  print(f"error: {one_line(error)}", file=sys.stderr)
  sys.exit(error.exit_code)


def heed_interrupts() -> None:
  """Has a ^C raised again that came where Python drops whatever is raised.

  That is in a finalizer or in a callback of the garbage collector; jax has one of these, and
  compiling calls it often.
  """
  drop = sys.unraisablehook

  def hook(unraisable):
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
      drop(unraisable)
      return
    # From a thread, a little later: at once it would be raised, and dropped, in here.
    main = threading.main_thread().ident
    threading.Timer(0.01, signal.pthread_kill, (main, signal.SIGINT)).start()

  sys.unraisablehook = hook


def end_interrupted() -> NoReturn:
  """Ends the process after a ^C, at once: a compilation in progress would not survive its exit."""
  print("stopped by ^C", file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(INTERRUPTED)


def help_text(own: Sequence[str] = OWN_FLAGS) -> str:
  """What --help prints: the program's docstring, its flags, and every field of a config."""
  lines = [(sys.modules["__main__"].__doc__ or "").strip(), "", "Flags:"]
  lines += [f"  --{name}: {flags.FLAGS[name].help}" for name in own if name in flags.FLAGS]
  if "config" not in own:
    return "\n".join(lines)
  lines += ["", "Config fields and their defaults:"]
  meaning_of = meanings()
  for name, value in flatten(default_config()).items():
    field = f"  --config.{name}={value}"
    meaning = meaning_of.get(name)
    lines.append(f"{field:<44}  {meaning}" if meaning else field)
  return "\n".join(lines)


def meanings() -> dict[str, str]:
  """The comment of each field and group: behind its line in `default_config`, or on those above.

  In the order in which they stand there; "" where there is none.
  """
  out, above = {}, []
  for line in inspect.getsource(default_config).splitlines():
    text = line.strip()
    if text.startswith("#"):
      above.append(text.removeprefix("# "))
      continue
    if match := re.match(r"c\.([\w.]+) = .*?(?:  # (.*))?$", text):
      out[match[1]] = match[2] or " ".join(above)
    above = []
  return out


def _parse(argv: Sequence[str], own: Sequence[str]) -> Sequence[str]:
  path = _check_arguments(argv, own)
  try:
    rest = flags.FLAGS(list(argv))
  except UserError:
    raise
  except flags.UnrecognizedFlagError as e:
    near = did_you_mean(e.flagname, own) or "; --help lists them all"
    raise UserError(f"--{e.flagname}: there is no such flag{near}") from e
  except Exception as e:  # absl's own errors, and whatever the code in the config file raises
    raise _config_error(path, e) or UserError(f"{one_line(e)}; see --help") from e
  if path is not None:
    _check_config(path, flags.FLAGS["config"].value)
  return rest


def _check_arguments(argv: Sequence[str], own: Sequence[str]) -> str | None:
  """Finds typos and values of the wrong type; returns the config's FILE[:VARIANT]."""
  known = flatten(default_config())
  path = None
  for name, value in _arguments(argv, own):
    if name == "config":
      path = value
      _check_file((value or "").split(":", 1)[0])
    elif name.startswith("config."):
      if path is None:
        raise UserError(f"--{name}: name a config before it, such as --config=configs/m11.py")
      _check_override(name.removeprefix("config."), value, known)
  return path


def _arguments(argv: Sequence[str], own: Sequence[str]) -> Iterator[tuple[str, str | None]]:
  """Yields (name, value) of every flag, as absl reads them: a value may follow its flag."""
  rest = iter(argv[1:])
  for argument in rest:
    if argument == "--" or not argument.startswith("-"):
      return
    name, equals, value = argument.removeprefix("-").removeprefix("-").partition("=")
    if not equals:
      value = None
      field = flatten(default_config()).get(name.removeprefix("config."))
      if (name in own and not flags.FLAGS[name].boolean) or (
        name.startswith("config.") and field is not None and not isinstance(field, bool)
      ):
        value = next(rest, None)
        if value is None:
          raise UserError(f"--{name} needs a value: --{name}=...")
    yield name, value


def _check_override(name: str, value: str | None, known: dict) -> None:
  if name not in known:
    inside = [k for k in known if k.startswith(name + ".")]
    if inside:
      raise UserError(f"--config.{name} is a group of fields, such as --config.{inside[0]}")
    raise UserError(f"--config.{name}: there is no such field{did_you_mean(name, known)}")
  kind = type(known[name])
  if value is None or kind is str:
    return
  try:
    parsed = ast.literal_eval(value.capitalize() if kind is bool else value)
  except (ValueError, SyntaxError):
    parsed = (value,) if kind is tuple else None  # a bare word is a tuple of one
  except (TypeError, RecursionError, MemoryError):  # a key that cannot be one; nested too deeply
    parsed = None
  if kind is tuple and isinstance(parsed, (str, int)):
    parsed = (parsed,)
  if problem := kind_problem(name, known[name], parsed):
    raise UserError(f"--config.{name}={shown(value)} {problem}")


def _check_file(name: str) -> None:
  if not name:
    raise UserError("--config is empty; name a file, such as --config=configs/m11.py")
  check_path("--config", name)
  path = pathlib.Path(name)
  if path.is_file():
    return
  if path.is_dir():
    inside = sorted(str(p) for p in path.glob("*.py"))
    raise UserError(
      f"--config={name} is a folder; name a file"
      + (f": {', '.join(inside)}" if inside else ", such as configs/m11.py")
    )
  if not path.parent.is_dir():
    raise UserError(f"--config={name}: there is no folder {path.parent} in {pathlib.Path.cwd()}")
  present = sorted(str(p) for p in path.parent.glob("*.py"))
  near = did_you_mean(str(path), present) or (
    f"; there are {', '.join(present)}" if present else "; name a file such as configs/m11.py"
  )
  raise UserError(f"--config={name}: there is no such file{near}")


def _check_config(path: str, config) -> None:
  try:
    config.items  # noqa: B018  a config that could not be read says so when it is touched
  except OSError as e:
    raise _config_error(path, e) or UserError(f"--config={path}: {one_line(e)}") from e
  except AttributeError:
    pass
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(
      f"{path}: get_config() returns {type(config).__name__}; it must return "
      "simpo_jax.config.default_config() with its changes"
    )


def _config_error(path: str | None, error: BaseException) -> UserError | None:
  """The error that the code of the config file raised, with its line; None if it is not that."""
  if path is None:
    return None
  file, _, variant = path.partition(":")
  cause: BaseException | None = error
  while cause is not None:
    lines = [
      line
      for frame, line in traceback.walk_tb(cause.__traceback__)
      if _same_file(frame.f_code.co_filename, file)
    ]
    if isinstance(cause, SyntaxError) and cause.filename and _same_file(cause.filename, file):
      return UserError(f"{file}, line {cause.lineno}: {cause.msg}; mend the config file")
    if lines:
      return UserError(
        f"{file}, line {lines[-1]}: {type(cause).__name__}: {one_line(cause)}; mend the config file"
      )
    text = str(cause)
    if text.endswith("has no attribute 'get_config'"):
      return UserError(f"{file} is no config: it must define get_config(); see configs/m11.py")
    if isinstance(cause, TypeError) and text.startswith("get_config() takes 0 "):
      return UserError(f"{file} has no variants; drop {':' + variant!r}")
    if isinstance(cause, TypeError) and text.startswith("get_config() missing "):
      return UserError(f"{file} needs a variant: --config={file}:VARIANT ({text})")
    cause = cause.__cause__ or cause.__context__
  return None


def _same_file(a: str, b: str) -> bool:
  return pathlib.Path(a).absolute() == pathlib.Path(b).absolute()
