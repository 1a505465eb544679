"""Splits files of preference rows into chunks that can be read in parallel.

The boundaries depend only on the files, not on the number of readers.
"""

import pathlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from simpo_jax.data.readers.compressed import PAIRS
from simpo_jax.data.readers.tables import read_parquet
from simpo_jax.data.row_files import MAX_LINE, Malformed, find_file, no_rows, parse_line, read_rows
from simpo_jax.data.rows.fields import FIELDS, NO_COLUMNS, rename_all
from simpo_jax.errors import UserError

CHUNK_BYTES = 32 * 2**20
_READ_BYTES = 2**22


class File(NamedTuple):
  """A file of rows. name: the prefix of its row ids."""

  path: str
  name: str


class Chunk(NamedTuple):
  """A contiguous part of a file that is read sequentially.

  Attributes:
    start, stop: byte offsets in a .jsonl file, row groups in a .parquet file; stop is 0 for
      formats that can only be read in full.
    first: the number of its first row (in a .jsonl file: line), from 1.
    size: approximate size in bytes.
  """

  file: File
  start: int
  stop: int
  first: int
  size: int


def split_into_chunks(files: Sequence[File], chunk_bytes: int = CHUNK_BYTES) -> list[Chunk]:
  """Splits files into chunks of about `chunk_bytes`, in order, where the format allows it."""
  return [chunk for file in files for chunk in _split_file(file, chunk_bytes)]


def read_chunk(
  chunk: Chunk, columns: Mapping[str, str] = NO_COLUMNS, seen: dict[str, None] | None = None
) -> Iterator[tuple[str, dict[str, Any] | Malformed]]:
  """Yields (row id, row) like `sources.read_files`, with constant memory.

  A .json list (not .jsonl) is parsed in one piece, and is held in memory in full.

  Args:
    columns: {field: column}, from `fields.parse_columns`.
    seen: receives the names that `fields.check_columns` needs.
  """
  numbered = _read_chunk(chunk, {*FIELDS, *columns.values()})
  rows = ((f"{chunk.file.name}:{number}", row) for number, row in numbered)
  return rename_all(rows, columns, {} if seen is None else seen)


def _read_chunk(
  chunk: Chunk, used: Collection[str]
) -> Iterator[tuple[int, dict[str, Any] | Malformed]]:
  file, name = pathlib.Path(chunk.file.path), chunk.file.name
  if not chunk.stop:
    for row_id, row in read_rows(str(file), used):
      yield int(row_id.rpartition(":")[2]), row
  elif name.lower().endswith(".parquet"):
    yield from read_parquet(file, range(chunk.start, chunk.stop), chunk.first, used)
  else:
    yield from _read_lines(file, chunk)


def _split_file(file: File, chunk_bytes: int) -> Iterator[Chunk]:
  path = pathlib.Path(find_file(file.path))
  name = path.name.lower()
  PAIRS.check(path)
  size = path.stat().st_size
  if not size:
    raise no_rows(str(path))
  if name.endswith(".jsonl"):
    return _split_lines(file, path, chunk_bytes)
  if name.endswith(".parquet"):
    return _split_row_groups(file, path, chunk_bytes)
  return iter([Chunk(file, 0, 0, 1, size)])


def _split_lines(file: File, path: pathlib.Path, chunk_bytes: int) -> Iterator[Chunk]:
  start, first, lines = 0, 1, 0
  position = 0
  with open(path, "rb") as f:
    while block := f.read(min(_READ_BYTES, chunk_bytes)):
      lines += block.count(b"\n")
      position += len(block)
      if position - start < chunk_bytes:
        continue
      # The chunk ends with the line, however long that is.
      while (rest := f.readline(_READ_BYTES)) and not rest.endswith(b"\n"):
        position += len(rest)
      lines += rest.endswith(b"\n")
      position += len(rest)
      yield Chunk(file, start, position, first, position - start)
      start, first = position, lines + 1
  if position > start:
    yield Chunk(file, start, position, first, position - start)


def _split_row_groups(file: File, path: pathlib.Path, chunk_bytes: int) -> Iterator[Chunk]:
  import pyarrow as pa
  import pyarrow.parquet as pq

  try:
    metadata = pq.read_metadata(path)
  except (pa.ArrowException, ValueError, OSError) as error:
    raise UserError(f"{path} is not a readable parquet file ({error})") from error
  if not metadata.num_rows:
    raise no_rows(str(path))
  start, first, rows, size = 0, 1, 0, 0
  for number in range(metadata.num_row_groups):
    group = metadata.row_group(number)
    rows += group.num_rows
    size += group.total_byte_size
    if size >= chunk_bytes or number == metadata.num_row_groups - 1:
      yield Chunk(file, start, number + 1, first, size)
      start, first, size = number + 1, rows + 1, 0


def _read_lines(file: pathlib.Path, chunk: Chunk):
  with open(file, "rb") as f:
    f.seek(chunk.start)
    number, position = chunk.first, chunk.start
    while position < chunk.stop and (line := f.readline(MAX_LINE)):
      position += len(line)
      if len(line) == MAX_LINE and not line.endswith(b"\n"):
        # An overlong line becomes a malformed row; its rest is skipped in pieces.
        while (rest := f.readline(MAX_LINE)) and not rest.endswith(b"\n"):
          position += len(rest)
        position += len(rest)
        line = b"{"
      if not chunk.start and number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
      if line.strip():
        yield number, parse_line(line)
      number += 1
