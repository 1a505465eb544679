"""Files of preference rows: what lies on disk, before anyone asks what it means.

Rows are numbered from 1 (the line in a JSON-lines file, the position
elsewhere), so that a row id such as "dpo_en_demo.json:17" can be looked up.
"""

import gzip
import io
import json
import pathlib
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from simpo_jax import storage
from simpo_jax.data import download
from simpo_jax.errors import UserError, first_line, one_line
from simpo_jax.storage.paths import nearest_files, nearest_names, plain

EXTENSIONS = (".json", ".json.gz", ".jsonl", ".jsonl.gz", ".parquet")
MAX_LINE = 64 * 2**20  # bytes; a longer line is cut, which no JSON survives
_MAX_UNPACKED = 2**30  # bytes of a .json.gz, which is parsed as a whole
_PARQUET_BATCH = 256


class Malformed(NamedTuple):
  """Stands in for a row that cannot be read; `reason` is its skip reason."""

  reason: str


def read_rows(path: str) -> Iterator[tuple[str, dict[str, Any] | Malformed]]:
  """Yields (row id, row) for every row of a file, in order.

  A broken row comes as a `Malformed`, so that the caller can count it.

  Raises:
    UserError: the file is missing, of an unknown kind, unreadable or empty.
  """
  file = find_file(path)
  read = _reader(file)
  count = 0
  try:
    for number, row in read(file):
      count += 1
      yield f"{file.name}:{number}", row
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(f"{path} cannot be read ({first_line(error)}); is it complete?") from error
  if not count:
    raise UserError(f"{path} has no rows; give a file with at least one preference pair")


def find_file(path: str) -> pathlib.Path:
  """The file at `path`, of a bucket a copy, or a UserError that names its nearest neighbours."""
  if storage.is_remote(path):
    return _fetched(path)
  file = plain(path)
  if file.is_dir():
    raise UserError(f"{path} is a folder; name a file in it")
  if not file.exists():
    raise UserError(f"{path} does not exist{nearest_files(file)}")
  return file


def _fetched(name: str) -> pathlib.Path:
  path = storage.open_path(name, "data")
  try:
    return download.fetch(path)
  except IsADirectoryError:
    raise UserError(f"{name} is a folder; name a file in it") from None
  except FileNotFoundError:
    near = nearest_names(path, storage.names(path.parent))
    raise UserError(f"{name} does not exist{near}") from None
  except storage.failures() as error:
    raise UserError(f"{name} cannot be read ({one_line(error)})") from error


def open_lines(file: pathlib.Path) -> Iterator[tuple[int, bytes]]:
  """Yields (line number from 1, line) of a plain or gzipped file, blank lines left out."""
  opener = gzip.open if file.name.endswith(".gz") else open
  with opener(file, "rb") as f:
    for number, line in enumerate(_lines(f), start=1):
      if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
      if line.strip():
        yield number, line


def _lines(file: io.BufferedIOBase) -> Iterator[bytes]:
  """Lines of an open file, the too long ones cut: a gzip of nothing unpacks to any size."""
  while line := file.readline(MAX_LINE):
    yield line
    while len(line) == MAX_LINE and not line.endswith(b"\n"):
      line = file.readline(MAX_LINE)


def parse_line(line: bytes) -> dict[str, Any] | Malformed:
  """The JSON object on a line."""
  try:
    row = json.loads(line.decode("utf-8"))
  except UnicodeDecodeError:
    return Malformed("not_utf8")
  # A few thousand nested brackets exhaust the parser's stack.
  except (ValueError, RecursionError):
    row = None
  return row if isinstance(row, dict) else Malformed("malformed_json")


def read_parquet(
  file: pathlib.Path, groups: Sequence[int] | None = None, first: int = 1
) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (number, row) of these row groups (None: of all), numbered from `first`."""
  import pyarrow as pa
  import pyarrow.parquet as pq

  number = first
  try:
    with pq.ParquetFile(file) as table:
      chosen = None if groups is None else list(groups)
      for batch in table.iter_batches(batch_size=_PARQUET_BATCH, row_groups=chosen):
        for row in batch.to_pylist():
          yield number, row
          number += 1
  except (pa.ArrowException, ValueError) as error:
    raise UserError(f"{file} is not a readable parquet file ({first_line(error)})") from error


def _reader(file: pathlib.Path):
  name = file.name.lower()
  if name.endswith((".jsonl", ".jsonl.gz")):
    return _read_json_lines
  if name.endswith((".json", ".json.gz")):
    return _read_json_list
  if name.endswith(".parquet"):
    return read_parquet
  raise UserError(f"{file} is of an unknown kind; the name must end in {', '.join(EXTENSIONS)}")


def _read_json_lines(file: pathlib.Path):
  for number, line in open_lines(file):
    yield number, parse_line(line)


def _read_json_list(file: pathlib.Path):
  packed = file.name.endswith(".gz")
  with (gzip.open if packed else open)(file, "rb") as f:
    data = f.read(_MAX_UNPACKED + 1 if packed else -1)
  if packed and len(data) > _MAX_UNPACKED:
    raise UserError(
      f"{file} unpacks to more than {_MAX_UNPACKED >> 20} MiB; write one object per line and name "
      "it .jsonl.gz, or unpack it"
    )
  if not data.strip():
    return
  try:
    rows = json.loads(data.decode("utf-8-sig"))
  except (ValueError, RecursionError) as error:
    hint = "; one object per line? then name it .jsonl" if data.lstrip()[:1] == b"{" else ""
    raise UserError(f"{file} is not valid JSON ({first_line(error)}){hint}") from error
  if not isinstance(rows, list):
    raise UserError(
      f"{file} holds one JSON {type(rows).__name__}; it must hold a list of objects"
      " (or one object per line in a file named .jsonl)"
    )
  for number, row in enumerate(rows, start=1):
    yield number, row if isinstance(row, dict) else Malformed("malformed_json")
