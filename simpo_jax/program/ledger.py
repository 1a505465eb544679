"""The ledger: how hosts agree, inside the program, on what a launch is.

Each process brings one int32 row. The program gathers the rows before its
switch; only if all agree does the wanted mode run. The gathered rows come back
in the report, so a disagreement is one clear error on every host.
"""

import dataclasses
import enum
import hashlib
import numbers
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Int32

FIELDS = (
  "mode",
  "launch",
  "digest_low",  # of config, program and what was read at the start
  "digest_high",
  "data_low",  # of what this very launch works on
  "data_high",
  "stop",
  "save",
)
AGREE = 6  # the first so many fields must be equal on all hosts
DATA = slice(FIELDS.index("data_low"), AGREE)
STOP = FIELDS.index("stop")  # not zero on any host: the launch does nothing, the run ends
SAVE = FIELDS.index("save")  # not zero on any host: a checkpoint follows on all


class Mode(enum.IntEnum):
  """The branches of the one program, in the order of its switch."""

  TRAIN = 0
  GENERATE = 1
  EVALUATE = 2
  ABORT = 3


@runtime_checkable
class Dataclass(Protocol):
  """An instance of a dataclass."""

  __dataclass_fields__: ClassVar[dict[str, Any]]


def digest(*parts: object) -> tuple[int, int]:
  """Two int32 words that stand for all the parts.

  Hosts that read another config, other data or other prompts differ in it; so do a checkpoint
  and a run that goes on from it. Checkpoints keep it: what it makes of a value never changes.

  Args:
    parts: strings, bytes, numbers, arrays and None; tuples, lists and dicts with names of them;
      dataclasses, which count field by field, those at their defaults not at all: so a field
      that is added later, with a default, changes nothing.

  Raises:
    TypeError: anything else, also in an array.
  """
  total = hashlib.sha256()

  def add(part: object) -> None:
    if isinstance(part, (list, tuple)):
      items = cast(Sequence[object], part)
      total.update(b"(%d" % len(items))
      for item in items:
        add(item)
    elif isinstance(part, str):
      total.update(b"s" + part.encode())
    elif part is None:
      total.update(b"n")
    elif dataclasses.is_dataclass(part) and not isinstance(part, type):
      add(changed_fields(part))
    elif isinstance(part, Mapping):
      by_name = cast(Mapping[str, object], part)
      total.update(b"{%d" % len(by_name))
      for name in sorted(by_name):
        add((name, by_name[name]))
    elif isinstance(part, (bytes, numbers.Number)) or hasattr(part, "__array__"):
      array = np.asarray(part)
      if array.dtype.hasobject:  # whose bytes are addresses
        raise TypeError(f"a digest of {type(part).__name__} of {array.dtype}")
      total.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    else:
      raise TypeError(f"a digest of {type(part).__name__}")

  add(parts)
  words = np.frombuffer(total.digest()[:8], np.int32)
  return int(words[0]), int(words[1])


class Contents(NamedTuple):
  """What a launch works on, as this host has it, in order: pairs, or requests.

  Attributes:
    words: the digest of all items, for the ledger.
    items: each one's name and its own digest, to find the first that differs.
  """

  words: tuple[int, int]
  items: tuple[tuple[str, str], ...]


def contents(named: Iterable[tuple[str, object]]) -> Contents:
  """The contents of a launch.

  Args:
    named: name and value of each item, in the order in which it is worked on; values as
      `digest` takes them.
  """
  items = tuple((name, hex_digest(value)) for name, value in named)
  return Contents(digest(items), items)


def hex_digest(value: object) -> str:
  """The `digest` of one value, as text."""
  return np.asarray(digest(value), np.int32).tobytes().hex()


def changed_fields(value: Dataclass) -> dict[str, Any]:
  """The fields of a dataclass that are not at their defaults, by name."""

  def usual(field: dataclasses.Field[Any], found: object) -> bool:
    made = field.default_factory
    default = field.default if made is dataclasses.MISSING else made()
    return type(found) is type(default) and found == default

  fields = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
  return {field.name: found for field, found in fields if not usual(field, found)}


def make_row(
  mode: Mode,
  launch: int,
  digest_words: tuple[int, int],
  data_words: tuple[int, int],
  stop: bool,
  save: bool = False,
) -> Int32[np.ndarray, " fields"]:
  """One process's row; see `FIELDS`."""
  row = [int(mode), launch, *digest_words, *data_words, int(stop), int(save)]
  return np.asarray(row, np.int32)
