"""Reads tables: Parquet, Arrow, CSV and TSV. Only the columns that are used are decoded.

A table of others may have columns that cannot be Python values, such as a timestamp after the year
9999. Every other column of a row therefore has the value `UNREAD`.
"""

import contextlib
import csv
import io
import pathlib
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

from simpo_jax.data.readers.compressed import open_binary
from simpo_jax.data.rows.fields import UNREAD
from simpo_jax.errors import UserError, first_line

Row = dict[str, Any]

_PARQUET_BATCH = 256  # rows
_MAX_FIELD = 64 * 2**20  # characters of a field or line of a .csv file


class _Columns(NamedTuple):
  """The columns of a table: all names, in order, and those that are decoded."""

  names: list[str]
  used: list[str]


def read_parquet(
  file: pathlib.Path,
  groups: Sequence[int] | None = None,
  first: int = 1,
  used: Collection[str] | None = None,
) -> Iterator[tuple[int, Row]]:
  """Yields (number, row) of a Parquet file.

  Args:
    groups: row groups to read; None: all.
    first: the number of the first row.
    used: the columns to decode, where they exist; None: all.

  Raises:
    UserError: the file is damaged, or a column cannot be decoded.
  """
  import pyarrow.parquet as pq

  with _readable(file, "parquet"), pq.ParquetFile(file) as table:
    columns = _columns(table.schema_arrow.names, used)
    batches = table.iter_batches(
      batch_size=_PARQUET_BATCH,
      row_groups=None if groups is None else list(groups),
      columns=columns.used,
    )
    yield from enumerate(_rows(file, batches, columns), start=first)


def read_arrow(
  file: pathlib.Path, used: Collection[str] | None = None
) -> Iterator[tuple[int, Row]]:
  """Yields (number, row) of an Arrow IPC file or stream, as `Dataset.save_to_disk` writes it.

  Args:
    used: the columns to decode, where they exist; None: all.

  Raises:
    UserError: the file is damaged, or a column cannot be decoded.
  """
  import pyarrow as pa

  with _readable(file, "arrow"), pa.memory_map(str(file)) as source:
    columns = _columns(_open_ipc(source).schema.names, used)
    included = [columns.names.index(name) for name in columns.used]
    reader = _open_ipc(source, pa.ipc.IpcReadOptions(included_fields=included or [0]))
    if hasattr(reader, "num_record_batches"):
      batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
    else:
      batches = iter(reader)
    yield from enumerate(_rows(file, batches, columns), start=1)


def _open_ipc(source: Any, options: Any = None) -> Any:
  """Arrow's reader of a file, which begins with its magic bytes, or of a stream."""
  import pyarrow as pa

  source.seek(0)
  is_file = source.read(6) == b"ARROW1"
  source.seek(0)
  opener = pa.ipc.open_file if is_file else pa.ipc.open_stream
  return opener(source, options=options)


def _columns(names: list[str], used: Collection[str] | None) -> _Columns:
  return _Columns(names, [name for name in names if used is None or name in used])


def _rows(file: pathlib.Path, batches: Iterator[Any], columns: _Columns) -> Iterator[Row]:
  template = dict.fromkeys(columns.names, UNREAD)
  for batch in batches:
    batch.validate(full=True)  # a damaged .arrow file could otherwise end the process
    values = [_values(file, batch.column(name), name) for name in columns.used]
    for number in range(batch.num_rows):
      yield {**template, **{n: v[number] for n, v in zip(columns.used, values, strict=True)}}


def _values(file: pathlib.Path, column: Any, name: str) -> list[Any]:
  import pyarrow as pa

  try:
    plain = _without_times(column.type)
    return (column if plain == column.type else column.cast(plain)).to_pylist()
  # ImportError: Arrow asks for pandas. OverflowError: a value that Python's type cannot hold.
  except (pa.ArrowException, ValueError, TypeError, OverflowError, ImportError) as error:
    raise UserError(
      f"{file}: the column {name!r}, of type {column.type}, cannot be read ({first_line(error)}); "
      "write it as text"
    ) from error


def _without_times(kind: Any) -> Any:
  """An Arrow type with integers for dates and times, of which Python's cannot hold all."""
  import pyarrow as pa

  types = pa.types
  if types.is_date32(kind) or types.is_time32(kind):
    return pa.int32()
  if types.is_temporal(kind) and not types.is_interval(kind):
    return pa.int64()
  if types.is_struct(kind):
    return pa.struct([field.with_type(_without_times(field.type)) for field in kind])
  if types.is_map(kind):
    return pa.map_(_without_times(kind.key_type), _without_times(kind.item_type))
  if types.is_fixed_size_list(kind):
    return pa.list_(_field_without_times(kind), kind.list_size)
  if types.is_large_list(kind):
    return pa.large_list(_field_without_times(kind))
  if types.is_list(kind):
    return pa.list_(_field_without_times(kind))
  return kind


def _field_without_times(kind: Any) -> Any:
  return kind.value_field.with_type(_without_times(kind.value_type))


@contextlib.contextmanager
def _readable(file: pathlib.Path, kind: str):
  """Turns what Arrow raises while it reads a file into a UserError."""
  import pyarrow as pa

  try:
    yield
  except (
    pa.ArrowException, ValueError, OSError, OverflowError, TypeError, LookupError, ImportError
  ) as error:  # fmt: skip
    raise UserError(f"{file} is not a readable {kind} file ({first_line(error)})") from error


def read_delimited(
  file: pathlib.Path, delimiter: str, used: Collection[str] | None = None
) -> Iterator[tuple[int, Row]]:
  """Yields (number, row) of a .csv or .tsv file, whose first line names the columns.

  All values are strings; an empty one is None, as if the row did not have it.

  Args:
    used: the columns to read, where they exist; None: all.

  Raises:
    UserError: a row does not have one value for each column, or the text cannot be parsed.
  """
  csv.field_size_limit(_MAX_FIELD)
  with open_binary(file) as opened, io.TextIOWrapper(opened, "utf-8-sig", newline="") as text:
    reader = csv.reader(_lines(file, text), delimiter=delimiter, strict=True)
    number = 0
    try:
      header = _check_header(file, next(reader, []), delimiter)
      for values in reader:
        if not values:
          continue
        number += 1
        if len(values) != len(header):
          raise UserError(
            f"{file}, line {reader.line_num}: a row of {len(values)} values, and the first line "
            f"names {len(header)} columns; put values that hold a {delimiter!r}, a quote or a "
            "line break in double quotes"
          )
        row = zip(header, values, strict=True)
        yield number, {n: (v or None) if used is None or n in used else UNREAD for n, v in row}
    except csv.Error as error:
      raise UserError(f"{file}, line {reader.line_num}: {first_line(error)}; fix it") from error
    except UnicodeDecodeError as error:
      raise UserError(f"{file} is not UTF-8 text; save it as UTF-8") from error


def _check_header(file: pathlib.Path, header: list[str], delimiter: str) -> list[str]:
  if len(header) == 1 and (other := next((c for c in "\t;,|" if c in header[0]), None)):
    right = {",": "csv", "\t": "tsv"}.get(other)
    fix = f"name it .{right}" if right else f"save it with {delimiter!r} between values"
    raise UserError(f"{file}: its columns are apart by {other!r}, not {delimiter!r}; {fix}")
  if repeated := [name for i, name in enumerate(header) if name in header[:i]]:
    raise UserError(f"{file} has two columns named {repeated[0]!r}; rename one")
  return header


def _lines(file: pathlib.Path, text: io.TextIOWrapper) -> Iterator[str]:
  while line := text.readline(_MAX_FIELD):
    if len(line) == _MAX_FIELD and not line.endswith(("\n", "\r")):
      raise UserError(f"{file} has a line of more than {_MAX_FIELD >> 20} million characters")
    yield line
