"""Command-line parsing whose mistakes are one line with the fix in it."""

import ast
import pathlib
import re
import sys
from collections.abc import Sequence

from absl import app, flags

from simpo_jax.config import default_config, did_you_mean
from simpo_jax.errors import UserError

_OVERRIDE = re.compile(r"--?config\.([\w.]+?)(?:=(.*))?$", re.DOTALL)


def parse_flags(argv: Sequence[str]) -> Sequence[str]:
  """An absl `flags_parser` that explains itself and exits with code 2."""
  debug = any(a in ("--debug", "--debug=true", "-debug") for a in argv)
  try:
    _check_overrides(argv)
    return app.parse_flags_with_usage(list(argv))
  except SystemExit:
    raise  # --help
  except UserError as e:
    if debug:
      raise
    message = str(e)
  except FileNotFoundError as e:
    if debug:
      raise
    message = f"--config={e.filename or e}: there is no such file{_near_file(e.filename)}"
  except Exception as e:
    if debug:
      raise
    message = " ".join(str(e).split()) or type(e).__name__
    message += "; see --help"
  print(f"error: {message}", file=sys.stderr)
  sys.exit(2)


def _check_overrides(argv: Sequence[str]) -> None:
  """Finds the typo in `--config.a.b=value`, and values of the wrong type."""
  known = _flatten(default_config())
  for argument in argv[1:]:
    match = _OVERRIDE.match(argument)
    if not match:
      continue
    name, value = match.groups()
    if name not in known:
      if any(k.startswith(name + ".") for k in known):
        raise UserError(f"--config.{name} is a group of fields, such as "
                        f"--config.{next(k for k in known if k.startswith(name + '.'))}")
      raise UserError(f"--config.{name}: there is no such field{did_you_mean(name, known)}")
    if value is not None:
      _check_type(name, value, known[name])


def _check_type(name: str, value: str, default) -> None:
  kind = type(default)
  if kind is str:
    return
  example = repr(default) if kind is not tuple else "(2,50) or ('a.json',)"
  try:
    parsed = ast.literal_eval(value.capitalize() if kind is bool else value)
  except (ValueError, SyntaxError):
    parsed = None if kind is not tuple else value  # a bare word is a tuple of one
  good = {bool: (bool,), int: (int,), float: (int, float), tuple: (tuple, str, int)}[kind]
  if not isinstance(parsed, good) or (isinstance(parsed, bool) and kind is not bool):
    raise UserError(f"--config.{name}={value}: expected {kind.__name__}, such as {example}")


def _flatten(config, prefix: str = "") -> dict:
  out = {}
  for key, value in config.items():
    if hasattr(value, "items"):
      out.update(_flatten(value, f"{prefix}{key}."))
    else:
      out[prefix + key] = value
  return out


def _near_file(name: str | None) -> str:
  folder = pathlib.Path(name or "").parent
  present = [str(folder / p.name) for p in folder.glob("*.py")] if folder.is_dir() else []
  return did_you_mean(str(name), present) or (f"; there are {', '.join(present)}" if present else "")
