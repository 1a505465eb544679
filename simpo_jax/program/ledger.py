"""The ledger: how hosts agree, inside the program, on what to launch.

Each process passes one int32 row. The program gathers the rows before its switch, and
runs the requested mode only if all rows agree. The report returns the gathered rows, so
that every host raises the same error if they differ.
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
  "digest_low",  # of config, program and the inputs read at the start
  "digest_high",
  "data_low",  # of this launch's pairs or requests
  "data_high",
  "stop",
  "save",
)
AGREE = 6  # the first 6 fields must be equal on all hosts
DATA = slice(FIELDS.index("data_low"), AGREE)
STOP = FIELDS.index("stop")  # nonzero on any host: the launch does nothing and the run ends
SAVE = FIELDS.index("save")  # nonzero on any host: all hosts save a checkpoint afterwards


class Mode(enum.IntEnum):
  """The branches of the program, in the order of its switch."""

  TRAIN = 0
  GENERATE = 1
  EVALUATE = 2
  ABORT = 3


@runtime_checkable
class Dataclass(Protocol):
  """An instance of a dataclass."""

  __dataclass_fields__: ClassVar[dict[str, Any]]


def digest(*parts: object) -> tuple[int, int]:
  """Hashes all parts to two int32 words.

  Hosts compare digests to detect different configs, data or prompts, and so do a checkpoint and
  the run that resumes it. Checkpoints store digests, so the digest of a value must never change.

  Args:
    parts: strings, bytes, numbers, arrays, None; lists, tuples and dicts (with string keys) of
      these; and dataclasses. Dataclass fields at their defaults are skipped, so that adding a
      field with a default does not change the digest.

  Raises:
    TypeError: a value of another type, or an array of objects.
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
      if array.dtype.hasobject:  # its bytes would be addresses
        raise TypeError(f"a digest of {type(part).__name__} of {array.dtype}")
      total.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())
    else:
      raise TypeError(f"a digest of {type(part).__name__}")

  add(parts)
  words = np.frombuffer(total.digest()[:8], np.int32)
  return int(words[0]), int(words[1])


class Contents(NamedTuple):
  """The pairs or requests of a launch, as read by this host, in order.

  Attributes:
    words: the digest of all items, for the ledger.
    items: (name, digest) of each item, to find the first one that differs between hosts.
  """

  words: tuple[int, int]
  items: tuple[tuple[str, str], ...]


def contents(named: Iterable[tuple[str, object]]) -> Contents:
  """Returns the contents of a launch.

  Args:
    named: name and value of each item, in processing order; `digest` must accept the values.
  """
  items = tuple((name, hex_digest(value)) for name, value in named)
  return Contents(digest(items), items)


def hex_digest(value: object) -> str:
  """Returns the `digest` of one value as hexadecimal text."""
  return np.asarray(digest(value), np.int32).tobytes().hex()


def changed_fields(value: Dataclass) -> dict[str, Any]:
  """Returns the fields of a dataclass that are not at their defaults, by name."""

  def is_default(field: dataclasses.Field[Any], found: object) -> bool:
    made = field.default_factory
    default = field.default if made is dataclasses.MISSING else made()
    return type(found) is type(default) and found == default

  fields = [(field, getattr(value, field.name)) for field in dataclasses.fields(value)]
  return {field.name: found for field, found in fields if not is_default(field, found)}


def make_row(
  mode: Mode,
  launch: int,
  digest_words: tuple[int, int],
  data_words: tuple[int, int],
  stop: bool,
  save: bool = False,
) -> Int32[np.ndarray, " fields"]:
  """Returns one process's row; see `FIELDS`."""
  row = [int(mode), launch, *digest_words, *data_words, int(stop), int(save)]
  return np.asarray(row, np.int32)
