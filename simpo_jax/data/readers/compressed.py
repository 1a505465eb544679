"""The kinds of data files by their names, and files that may be compressed."""

import gzip
import io
import pathlib
from typing import BinaryIO, NamedTuple, cast

from simpo_jax.errors import UserError

_COMPRESSED = (".gz", ".zst")
_TABLES = (".parquet", ".arrow")  # they compress their columns themselves


class Kinds(NamedTuple):
  """The kinds of files that are taken for a purpose.

  Attributes:
    text: the extensions of files that may also be compressed.
    rows: the types that a row of JSON may have.
  """

  text: tuple[str, ...]
  rows: tuple[type, ...]

  @property
  def extensions(self) -> tuple[str, ...]:
    """All ends of file names, in lower case."""
    return (*(f"{kind}{end}" for kind in self.text for end in ("", *_COMPRESSED)), *_TABLES)

  def __str__(self) -> str:
    ends = " or ".join(_COMPRESSED)
    return f"{', '.join(self.text)} (all also with {ends}), {' or '.join(_TABLES)}"

  def has(self, name: str) -> bool:
    """Whether a file of this name is taken."""
    return name.lower().endswith(self.extensions)

  def check(self, file: pathlib.Path) -> None:
    """Raises a UserError for a file of another kind."""
    if not self.has(file.name):
      raise UserError(f"{file} is of an unknown kind; the name must end in {self}")


PAIRS = Kinds((".json", ".jsonl", ".csv", ".tsv"), (dict,))
# A line of text is a prompt, and so is a list of messages.
PROMPTS = Kinds((*PAIRS.text, ".txt"), (dict, list))


def kind_of(name: str) -> str:
  """Returns the extension that says what a file holds: ".jsonl" for "a.JSONL.gz"."""
  return pathlib.PurePath(name.lower().removesuffix(".gz").removesuffix(".zst")).suffix


def is_compressed(name: str) -> bool:
  """Whether a file's name says that it is compressed."""
  return name.lower().endswith(_COMPRESSED)


def open_binary(file: pathlib.Path) -> BinaryIO:
  """Opens a plain, .gz or .zst file for reading; a damaged one raises OSError, EOFError or zlib's.

  Zstandard is Arrow's: Python has its own only from 3.14.
  """
  name = file.name.lower()
  if name.endswith(".gz"):
    return cast(BinaryIO, gzip.open(file, "rb"))
  if name.endswith(".zst"):
    import pyarrow as pa

    # A NativeFile has the methods of a raw file, but none of the classes of `io`.
    return io.BufferedReader(cast(io.RawIOBase, pa.CompressedInputStream(str(file), "zstd")))
  return open(file, "rb")
