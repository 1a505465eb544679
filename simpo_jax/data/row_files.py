"""Reads rows from files of JSON, JSON lines, text and tables, without interpreting their fields.

Rows are numbered from 1 (by line in a JSON-lines file, by position in others), so that a row id
such as "dpo_en_demo.json:17" can be looked up.
"""

import json
import pathlib
import zlib
from collections.abc import Callable, Collection, Iterator
from typing import Any, BinaryIO, NamedTuple

from simpo_jax import storage
from simpo_jax.data.readers import download
from simpo_jax.data.readers.compressed import PAIRS, Kinds, is_compressed, kind_of, open_binary
from simpo_jax.data.readers.tables import read_arrow, read_delimited, read_parquet
from simpo_jax.errors import UserError, first_line, one_line
from simpo_jax.storage.paths import nearest_files, nearest_names, plain

MAX_LINE = 64 * 2**20  # bytes; a longer line is truncated, and so becomes malformed JSON
_MAX_UNPACKED = 2**30  # uncompressed bytes of a .json.gz, which is parsed in one piece


class Malformed(NamedTuple):
  """Replaces a row that cannot be parsed; `reason` is its skip reason."""

  reason: str


_Rows = Iterator[tuple[int, Any]]


def read_rows(
  path: str, used: Collection[str] | None = None, kinds: Kinds = PAIRS
) -> Iterator[tuple[str, Any]]:
  """Yields (row id, row) for all rows of a file, in order.

  A row has one of the types of `kinds.rows`, or is the text of a line of a .txt file. One that
  cannot be parsed is yielded as `Malformed`, so that the caller can count it.

  Args:
    used: the columns of a table to decode; the others have the value `rows.fields.UNREAD`. None:
      all.
    kinds: what is taken.

  Raises:
    UserError: the file is missing, unreadable, empty, or of an unsupported format.
  """
  file = find_file(path)
  kinds.check(file)
  read = _READERS[kind_of(file.name)]
  count = 0
  try:
    for number, row in read(file, used, kinds.rows):
      count += 1
      yield f"{file.name}:{number}", row
  except (OSError, EOFError, zlib.error) as error:
    raise UserError(f"{path} cannot be read ({first_line(error)}); is it complete?") from error
  if not count:
    raise no_rows(path)


def no_rows(name: str) -> UserError:
  """The error for a file or a source that holds nothing."""
  return UserError(f"{name} has no rows; give a file with at least one")


def find_file(path: str) -> pathlib.Path:
  """Returns the local file at `path`, downloading it from a bucket.

  Raises:
    UserError: it does not exist (the message names similar files) or is a folder.
  """
  if storage.is_remote(path):
    return _fetch_copy(path)
  file = plain(path)
  if file.is_dir():
    raise UserError(f"{path} is a folder; name a file in it")
  if not file.exists():
    raise UserError(f"{path} does not exist{nearest_files(file)}")
  return file


def _fetch_copy(name: str) -> pathlib.Path:
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
  """Yields (line number from 1, line) of a file, compressed or not, without blank lines."""
  with open_binary(file) as f:
    for number, line in enumerate(_lines(f), start=1):
      if number == 1:
        line = line.removeprefix(b"\xef\xbb\xbf")
      if line.strip():
        yield number, line


def _lines(file: BinaryIO) -> Iterator[bytes]:
  """Lines of an open file, truncated to MAX_LINE: a small .gz may expand to any size."""
  while line := file.readline(MAX_LINE):
    yield line
    while len(line) == MAX_LINE and not line.endswith(b"\n"):
      line = file.readline(MAX_LINE)


def parse_line(line: bytes, types: tuple[type, ...] = PAIRS.rows) -> Any:
  """Parses a line as a JSON value of one of these types; returns `Malformed` if it is not one."""
  try:
    row = json.loads(line.decode("utf-8"))
  except UnicodeDecodeError:
    return Malformed("not_utf8")
  # RecursionError: thousands of nested brackets.
  except (ValueError, RecursionError):
    row = None
  return row if isinstance(row, types) else Malformed("malformed_json")


def _read_text(file: pathlib.Path) -> _Rows:
  for number, line in open_lines(file):
    try:
      yield number, line.decode("utf-8").strip()
    except UnicodeDecodeError:
      yield number, Malformed("not_utf8")


def _read_json_lines(file: pathlib.Path, types: tuple[type, ...]) -> _Rows:
  for number, line in open_lines(file):
    yield number, parse_line(line, types)


def _read_json_list(file: pathlib.Path, types: tuple[type, ...]) -> _Rows:
  compressed = is_compressed(file.name)
  with open_binary(file) as f:
    data = f.read(_MAX_UNPACKED + 1 if compressed else -1)
  if compressed and len(data) > _MAX_UNPACKED:
    raise UserError(
      f"{file} unpacks to more than {_MAX_UNPACKED >> 20} MiB; write one object per line and name "
      f"it .jsonl{file.suffix}, or unpack it"
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
    yield number, row if isinstance(row, types) else Malformed("malformed_json")


_READERS: dict[str, Callable[[pathlib.Path, Collection[str] | None, tuple[type, ...]], _Rows]] = {
  ".txt": lambda file, used, types: _read_text(file),
  ".jsonl": lambda file, used, types: _read_json_lines(file, types),
  ".json": lambda file, used, types: _read_json_list(file, types),
  ".parquet": lambda file, used, types: read_parquet(file, used=used),
  ".arrow": lambda file, used, types: read_arrow(file, used),
  ".csv": lambda file, used, types: read_delimited(file, ",", used),
  ".tsv": lambda file, used, types: read_delimited(file, "\t", used),
}
