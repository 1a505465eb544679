"""What is declared of a setting."""

from typing import Any, NamedTuple


class Field(NamedTuple):
  """One setting.

  Attributes:
    name: with its group, such as "train.steps"; on the command line --config.train.steps.
    default: its type is the field's, but an int may stand for a float.
    meaning: for --help and the reference.
    choices: the only values; empty: any.
    low, high: inclusive limits; None: none but those of the type.
    element: the type of a tuple's elements.
    example: a tuple as it is written on the command line.
    is_path: values must be paths that this system could have.
    resumable: a resumed run may change it, as it may the fields of `RESUMABLE` groups: the
      numbers of the run stay the same up to rounding.
  """

  name: str
  default: Any
  meaning: str
  choices: tuple[str, ...] = ()
  low: float | None = None
  high: float | None = None
  element: type | None = None
  example: str = ""
  is_path: bool = False
  resumable: bool = False

  @property
  def group(self) -> str:
    """Of the name; "" for a field of none."""
    return self.name.rpartition(".")[0]


def text(name: str, default: str, meaning: str, path: bool = False) -> Field:
  """Any text."""
  return Field(name, default, meaning, is_path=path)


def choice(name: str, default: str, meaning: str, choices: tuple[str, ...]) -> Field:
  """One of several words."""
  return Field(name, default, meaning, choices=tuple(choices))


def flag(name: str, default: bool, meaning: str) -> Field:
  """True or False."""
  return Field(name, default, meaning)


def integer(
  name: str, default: int, meaning: str, low: int, high: int | None = None, resumable: bool = False
) -> Field:
  """A whole number from `low` to `high`."""
  return Field(name, default, meaning, low=low, high=high, resumable=resumable)


def number(name: str, default: float, meaning: str, low: float, high: float | None = None) -> Field:
  """A finite number from `low` to `high`."""
  return Field(name, default, meaning, low=low, high=high)


def items(
  name: str, default: tuple, meaning: str, element: type, example: str, path: bool = False
) -> Field:
  """A tuple of `element`s, written like `example`."""
  return Field(name, default, meaning, element=element, example=example, is_path=path)
