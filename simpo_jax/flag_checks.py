"""Checks of flags and config files ahead of absl, for better error messages than absl's."""

import ast
import os
import pathlib
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import ml_collections
from absl import flags

from simpo_jax.config import did_you_mean
from simpo_jax.config_check import kind_problem
from simpo_jax.errors import UserError, one_line, shown
from simpo_jax.settings import FIELDS
from simpo_jax.storage.paths import check_path, plain

HELP_FLAGS = ("-h", "--h", "-help", "--help", "--helpshort", "--helpfull")


def check_arguments(argv: Sequence[str], allowed: Sequence[str]) -> str | None:
  """Raises a UserError for typos and values of the wrong type.

  Returns:
    The value of --config, FILE[:VARIANT], or None if it was not given.
  """
  path = None
  for name, value in arguments(argv, allowed):
    if name == "config":
      path = value
      _check_file((value or "").split(":", 1)[0])
    elif name.startswith("config."):
      if path is None:
        raise UserError(f"--{name}: name a config before it, such as --config=configs/m11.py")
      _check_override(name.removeprefix("config."), value)
  return path


def arguments(argv: Sequence[str], allowed: Sequence[str]) -> Iterator[tuple[str, str | None]]:
  """Yields (name, value) of every flag, as in absl: --name=value or --name value."""
  rest = iter(argv[1:])
  for argument in rest:
    if argument == "--" or not argument.startswith("-"):
      return
    name, equals, value = argument.removeprefix("-").removeprefix("-").partition("=")
    if not equals:
      value = None
      field = FIELDS.get(name.removeprefix("config."))
      if (name in allowed and not flags.FLAGS[name].boolean) or (
        name.startswith("config.") and field and not isinstance(field.default, bool)
      ):
        value = next(rest, None)
        if value is None:
          raise UserError(f"--{name} needs a value: --{name}=...")
    yield name, value


def separate_lists(argv: Sequence[str]) -> list[str]:
  """Writes A,B as ('A','B') in flags of config fields that are tuples of strings.

  A comma separates nothing in fields of texts, and in the name of a file that exists.
  """
  out, waiting = list(argv[:1]), ""
  for argument in argv[1:]:
    name, equals, value = argument.removeprefix("-").removeprefix("-").partition("=")
    if waiting:
      out.append(_as_tuple(waiting, argument))
      waiting = ""
    elif argument.startswith("-") and _is_list(name):
      out.append(f"--{name}={_as_tuple(name, value)}" if equals else argument)
      waiting = "" if equals else name
    else:
      out.append(argument)
  return out


def _is_list(name: str) -> bool:
  field = FIELDS.get(name.removeprefix("config.")) if name.startswith("config.") else None
  return field is not None and field.element is str and not field.is_text


def _as_tuple(name: str, value: str) -> str:
  try:
    ast.literal_eval(value)
    return value
  except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
    pass
  check_path(f"--{name}", value if "," not in value else "")
  items = [value] if os.path.exists(plain(value)) else [item.strip() for item in value.split(",")]
  if not all(items):
    raise UserError(f"--{name}={shown(value)} has an empty entry; remove the extra comma")
  return repr(tuple(items))


def _check_override(name: str, value: str | None) -> None:
  if name not in FIELDS:
    inside = [k for k in FIELDS if k.startswith(name + ".")]
    if inside:
      raise UserError(f"--config.{name} is a group of fields, such as --config.{inside[0]}")
    raise UserError(f"--config.{name}: there is no such field{did_you_mean(name, FIELDS)}")
  field = FIELDS[name]
  kind = type(field.default)
  if value is None or kind is str:
    return
  try:
    parsed = ast.literal_eval(value.capitalize() if kind is bool else value)
  except (ValueError, SyntaxError):
    parsed = (value,) if kind is tuple else None  # a bare word is a tuple of one
  except (TypeError, RecursionError, MemoryError):  # an unhashable key; nested too deeply
    parsed = None
  if kind is tuple and isinstance(parsed, (str, int)):
    parsed = (parsed,)
  if problem := kind_problem(field, parsed):
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


def check_config(path: str, config: Any) -> None:
  """Raises a UserError if a config file did not return a ConfigDict.

  Args:
    path: its FILE[:VARIANT], for the message.
    config: what its get_config() returned.
  """
  try:
    config.items  # noqa: B018  ml_collections defers a failure to read the file to first access
  except OSError as e:
    raise config_error(path, e) or UserError(f"--config={path}: {one_line(e)}") from e
  except AttributeError:
    pass
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(
      f"{path}: get_config() returns {type(config).__name__}; it must return "
      "simpo_jax.config.default_config() with its changes"
    )


def check_schedule(path: str, config: Any, named: set[str]) -> None:
  """Raises a UserError if generate.at_steps of the config file overrides a generate.every flag.

  Args:
    path: FILE[:VARIANT] of the config, for the message.
    named: names of the flags on the command line.
  """
  at_steps, given = config.generate.get("at_steps"), "config.generate.every" in named
  if given and at_steps and "config.generate.at_steps" not in named:
    raise UserError(
      f"--config.generate.every={shown(config.generate.every)} would do nothing: "
      f"generate.at_steps={shown(at_steps)} of {path} takes precedence over it; clear that with "
      '--config.generate.at_steps="()"'
    )


def config_error(path: str | None, error: BaseException) -> UserError | None:
  """Returns a UserError that names the line of the config file where an error was raised.

  Args:
    path: FILE[:VARIANT] of the config.
    error: an exception, with its causes.

  Returns:
    None if the error does not come from the config file.
  """
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
      return UserError(f"{file}, line {cause.lineno}: {cause.msg}; fix the config file")
    if lines:
      return UserError(
        f"{file}, line {lines[-1]}: {type(cause).__name__}: {one_line(cause)}; fix the config file"
      )
    text = str(cause)
    if text.endswith("has no attribute 'get_config'"):
      return UserError(f"{file} is not a config: it must define get_config(); see configs/m11.py")
    if isinstance(cause, TypeError) and text.startswith("get_config() takes 0 "):
      return UserError(f"{file} has no variants; drop {':' + variant!r}")
    if isinstance(cause, TypeError) and text.startswith("get_config() missing "):
      return UserError(f"{file} needs a variant: --config={file}:VARIANT ({text})")
    cause = cause.__cause__ or cause.__context__
  return None


def _same_file(a: str, b: str) -> bool:
  return plain(a) == plain(b)
