"""The kinds of data files by their names, and files that may be compressed."""

import gzip
import io
import pathlib
from typing import BinaryIO, cast

_COMPRESSED = (".gz", ".zst")
_TEXT = (".json", ".jsonl", ".csv", ".tsv")
_TABLES = (".parquet", ".arrow")  # they compress their columns themselves

EXTENSIONS = tuple(f"{kind}{end}" for kind in _TEXT for end in ("", *_COMPRESSED)) + _TABLES
KINDS = f"{', '.join(_TEXT)} (all also with {' or '.join(_COMPRESSED)}), {' or '.join(_TABLES)}"


def kind_of(name: str) -> str:
  """Returns the extension that says what a file holds: ".jsonl" for "a.JSONL.gz"."""
  return pathlib.PurePath(name.lower().removesuffix(".gz").removesuffix(".zst")).suffix


def is_known(name: str) -> bool:
  """Whether a file's name says that it holds rows of a known kind."""
  return name.lower().endswith(EXTENSIONS)


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
