"""The fields of a data row that are read, and `data.columns`, which maps other names to them."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from simpo_jax.errors import UserError

# Every other key of a row is counted and told (`read.read_fields`).
FIELDS = (
  "prompt", "question", "instruction", "input", "history", "messages", "conversations", "chosen",
  "rejected", "system", "system_prompt", "tools", "chat_template_kwargs",
)  # fmt: skip
NO_COLUMNS: Mapping[str, str] = MappingProxyType({})
UNREAD = object()  # the value of a column that exists in a table, but is not read


def parse_columns(columns: Sequence[str], setting: str = "--config.data.columns") -> dict[str, str]:
  """Parses `data.columns`, ("FIELD=COLUMN", ...), to {field: column}.

  Args:
    columns: the setting.
    setting: its name, for messages.

  Raises:
    UserError: an item is not of this form, its field is unknown, or a field occurs twice.
  """
  mapping: dict[str, str] = {}
  for item in columns:
    field, separator, column = item.partition("=")
    if not separator or not column or field not in FIELDS:
      raise UserError(
        f"{setting}: {item!r} is not FIELD=COLUMN, such as 'prompt=question'; fields "
        f"are {', '.join(FIELDS)}"
      )
    if field in mapping:
      raise UserError(f"{setting} names {field} twice; give it one column")
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
