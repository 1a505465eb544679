"""Declarations of settings: dataclass fields with metadata for checks, help and docs."""

import dataclasses
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")


class Field(NamedTuple):
  """One setting.

  Attributes:
    name: includes the group, as in "train.steps"; on the command line --config.train.steps.
    default: its type is the type of the field; a float field also accepts ints.
    resumable: a resumed run may change it, since it affects the run's numbers only by rounding.
    meaning: description for --help and docs/configuration.md.
    choices: the allowed values; empty: any.
    low, high: inclusive limits; None: only those of the type.
    element: the type of a tuple's elements.
    example: a tuple as it is written on the command line.
    is_path: the value is a path, or a tuple of paths, and is checked by `paths.check_path`.
    is_text: the elements of a tuple are texts, in which a comma on the command line separates
      nothing.
  """

  name: str
  default: Any
  resumable: bool
  meaning: str
  choices: tuple[str, ...] = ()
  low: float | None = None
  high: float | None = None
  element: type | None = None
  example: str = ""
  is_path: bool = False
  is_text: bool = False

  @property
  def group(self) -> str:
    """The part of the name before its last dot, such as "train"; "" at the top level."""
    return self.name.rpartition(".")[0]


def text(default: str, meaning: str, path: bool = False) -> str:
  """Declares a string field."""
  return _declare(default, meaning, is_path=path)


def choice(default: str, meaning: str, choices: tuple[str, ...]) -> str:
  """Declares a string field with a fixed set of values."""
  return _declare(default, meaning, choices=choices)


def flag(default: bool, meaning: str) -> bool:
  """Declares a bool field."""
  return _declare(default, meaning)


def integer(
  default: int, meaning: str, low: int, high: int | None = None, resumable: bool = False
) -> int:
  """Declares an int field with inclusive limits."""
  return _declare(default, meaning, low=low, high=high, resumable=resumable)


def number(default: float, meaning: str, low: float, high: float | None = None) -> float:
  """Declares a float field with inclusive limits; infinity and NaN are not allowed."""
  return _declare(default, meaning, low=low, high=high)


def items(
  default: tuple[_T, ...],
  meaning: str,
  element: type[_T],
  example: str,
  path: bool = False,
  text: bool = False,
) -> tuple[_T, ...]:
  """Declares a tuple field."""
  return _declare(default, meaning, element=element, example=example, is_path=path, is_text=text)


def group(settings: type, resumable: bool = False) -> Any:
  """Declares a nested group of settings; a resumed run may change a `resumable` group."""
  return dataclasses.field(default_factory=settings, metadata={"resumable": resumable})


def declared(settings: type, prefix: str = "", resumable: bool = False) -> dict[str, Field]:
  """Returns {name: Field} of a settings dataclass, including those of nested groups."""
  found: dict[str, Field] = {}
  for field in dataclasses.fields(settings):
    name, metadata = prefix + field.name, dict(field.metadata)
    inherited = metadata.pop("resumable") or resumable
    if isinstance(field.default_factory, type):
      found |= declared(field.default_factory, f"{name}.", inherited)
    else:
      found[name] = Field(name, field.default, inherited, **metadata)
  return found


def _declare(default: Any, meaning: str, resumable: bool = False, **limits: Any) -> Any:
  metadata = {"meaning": meaning, "resumable": resumable, **limits}
  return dataclasses.field(default=default, metadata=metadata)
