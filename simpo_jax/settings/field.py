"""What is declared of a setting."""

import dataclasses
from typing import Any, NamedTuple, TypeVar

_T = TypeVar("_T")


class Field(NamedTuple):
  """One setting.

  Attributes:
    name: with its group, such as "train.steps"; on the command line --config.train.steps.
    default: its type is the field's, but an int may stand for a float.
    resumable: a resumed run may change it: the numbers of the run stay the same up to rounding.
    meaning: for --help and the reference.
    choices: the only values; empty: any.
    low, high: inclusive limits; None: none but those of the type.
    element: the type of a tuple's elements.
    example: a tuple as it is written on the command line.
    is_path: values must be paths that this system could have.
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

  @property
  def group(self) -> str:
    """Of the name; "" for a field of none."""
    return self.name.rpartition(".")[0]


def text(default: str, meaning: str, path: bool = False) -> str:
  """Any text."""
  return _declare(default, meaning, is_path=path)


def choice(default: str, meaning: str, choices: tuple[str, ...]) -> str:
  """One of several words."""
  return _declare(default, meaning, choices=choices)


def flag(default: bool, meaning: str) -> bool:
  """True or False."""
  return _declare(default, meaning)


def integer(
  default: int, meaning: str, low: int, high: int | None = None, resumable: bool = False
) -> int:
  """A whole number from `low` to `high`."""
  return _declare(default, meaning, low=low, high=high, resumable=resumable)


def number(default: float, meaning: str, low: float, high: float | None = None) -> float:
  """A finite number from `low` to `high`."""
  return _declare(default, meaning, low=low, high=high)


def items(
  default: tuple[_T, ...], meaning: str, element: type[_T], example: str, path: bool = False
) -> tuple[_T, ...]:
  """A tuple of `element`s, written like `example`."""
  return _declare(default, meaning, element=element, example=example, is_path=path)


def group(settings: type, resumable: bool = False) -> Any:
  """Settings of their own, which a resumed run may change if they are `resumable`."""
  return dataclasses.field(default_factory=settings, metadata={"resumable": resumable})


def declared(settings: type, prefix: str = "", resumable: bool = False) -> dict[str, Field]:
  """The fields of a dataclass of settings, those of its groups included, by their names."""
  found: dict[str, Field] = {}
  for field in dataclasses.fields(settings):
    name, metadata = prefix + field.name, dict(field.metadata)
    free = metadata.pop("resumable") or resumable
    if isinstance(field.default_factory, type):
      found |= declared(field.default_factory, f"{name}.", free)
    else:
      found[name] = Field(name, field.default, free, **metadata)
  return found


def _declare(default: Any, meaning: str, resumable: bool = False, **limits: Any) -> Any:
  metadata = {"meaning": meaning, "resumable": resumable, **limits}
  return dataclasses.field(default=default, metadata=metadata)
