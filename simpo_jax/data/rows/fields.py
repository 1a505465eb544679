"""The fields of a data row that are read, and `data.columns`, which maps other names to them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from simpo_jax.errors import UserError

# Every other key of a row is counted and told (`read.read_fields`).
FIELDS = (
  "prompt", "question", "instruction", "input", "history", "messages", "conversations", "chosen",
  "rejected", "system", "system_prompt", "tools", "chat_template_kwargs",
)  # fmt: skip
NO_COLUMNS: Mapping[str, str] = MappingProxyType({})
COLUMNS_HELP = (
  "FIELD=COLUMN, such as prompt=question: a column that stands for a field of a row; repeatable."
)
_SETTING = "--config.data.columns"
_MAX_COLUMNS = 30  # listed in a message
UNREAD = object()  # the value of a column that exists in a table, but is not read


def parse_columns(columns: Sequence[str]) -> dict[str, str]:
  """Parses `data.columns`, ("FIELD=COLUMN", ...), to {field: column}.

  Raises:
    UserError: an item is not of this form, its field is unknown, or a field occurs twice.
  """
  mapping: dict[str, str] = {}
  for item in columns:
    field, separator, column = item.partition("=")
    if not separator or not column or field not in FIELDS:
      raise UserError(
        f"{_SETTING}: {item!r} is not FIELD=COLUMN, such as 'prompt=question'; fields "
        f"are {', '.join(FIELDS)}"
      )
    if field in mapping:
      raise UserError(f"{_SETTING} names {field} twice; give it one column")
    mapping[field] = column
  return mapping


def rename(row: dict[str, Any], mapping: Mapping[str, str]) -> dict[str, Any]:
  """Returns a row with the mapped columns under the names of their fields.

  A column that has such a name itself stays as one that is not read.
  """
  if not mapping:
    return row
  found = {field: column for field, column in mapping.items() if column in row}
  rest = {
    f"{name} (data.columns has {found[name]} for it)" if name in found else name: value
    for name, value in row.items()
    if name not in mapping.values()
  }
  return {**rest, **{field: row[column] for field, column in found.items()}}


def rename_all(
  rows: Iterable[tuple[str, Any]], columns: Mapping[str, str], seen: dict[str, None]
) -> Iterator[tuple[str, Any]]:
  """Yields (row id, row) with mapped columns renamed; rows that are no objects stay as they are.

  Args:
    seen: receives the names that the rows have, if columns are mapped; see `check_columns`.
  """
  for row_id, row in rows:
    if columns and isinstance(row, dict):
      seen.update(dict.fromkeys(row))
      row = rename(row, columns)
    yield row_id, row


def check_columns(columns: Mapping[str, str], seen: Mapping[str, None], source: str) -> None:
  """Raises a UserError if no row has a mapped column, nor the field itself.

  Args:
    seen: all names that the rows of the source have.
    source: what the rows are of, for the message.
  """
  for field, column in columns.items():
    if column not in seen and field not in seen:
      more = " ..." if len(seen) > _MAX_COLUMNS else ""
      raise UserError(
        f"{_SETTING} names {column!r}, which no row of {source} has; there are "
        f"{', '.join(list(seen)[:_MAX_COLUMNS]) or 'none'}{more}"
      )
