"""Reads the fields of a row, and notes what is beside them, so that it can be counted and told."""

import json
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from simpo_jax.data.rows.fields import FIELDS, UNREAD
from simpo_jax.data.rows.messages import (
  check_text,
  check_unicode,
  is_absent,
  named,
  parse_json_messages,
  without_none,
)
from simpo_jax.data.rows.reasons import SkipRow
from simpo_jax.data.types import Message

ANSWERS = ("chosen", "rejected")
PROMPT_FIELDS = ("conversations", "prompt", "messages", "question", "instruction")
_MAX_COLUMNS = 40  # names in a message
_SPLIT = "\0split"  # marks the rows of `split_answers`; no column has this name


class Row(NamedTuple):
  """The fields of a row that have a value.

  Attributes:
    columns: all names that the row has, for messages.
    notes: facts that the user should know, each completes "N rows ..."; appended to.
  """

  fields: dict[str, Any]
  columns: tuple[str, ...]
  notes: list[str]

  @property
  def is_pair(self) -> bool:
    """Whether the row has both answers."""
    return all(name in self.fields for name in ANSWERS)

  def missing(self) -> SkipRow:
    """The error for a row without a prompt or without answers."""
    if self.is_pair and any(name in self.fields for name in PROMPT_FIELDS):
      return SkipRow("empty_prompt")
    names = ", ".join(map(named, self.columns[:_MAX_COLUMNS])) or "nothing"
    more = f" and {len(self.columns) - _MAX_COLUMNS} more"
    return SkipRow("missing_field", f"it has {names}{more * (len(self.columns) > _MAX_COLUMNS)}")

  def unused(self, name: str, used: str) -> None:
    """Notes a column that is not used, since another one is."""
    self.notes.append(f"have a column {name} beside {used}, which is used")


def read_fields(row: dict[str, Any]) -> Row:
  """Returns the fields of a row, with messages that are JSON text parsed."""
  present = {k: v for k, v in row.items() if not is_absent(v) and k != _SPLIT}
  notes = [f"have a column {named(k)}, which is not read" for k in present if k not in FIELDS]
  if row.get(_SPLIT):
    notes.append("have one of several rejected answers, each paired with the chosen one")
  fields = {k: v for k, v in present.items() if k in FIELDS and v is not UNREAD}
  parsed = _parsed(fields)
  if any(parsed[name] is not fields[name] for name in fields):
    notes.append("have messages as JSON text, which is parsed")
  return Row(parsed, tuple(present), notes)


def split_answers(row_id: str, row: Any) -> Iterator[tuple[str, Any]]:
  """Yields (row id, row), or one row for each rejected answer if these are a list of several."""
  rejected = row.get("rejected") if isinstance(row, dict) else None
  if not isinstance(rejected, list) or not _is_several(rejected):
    yield row_id, row
    return
  for number, answer in enumerate(rejected, start=1):
    yield f"{row_id}/{number}", {**row, "rejected": answer, _SPLIT: True}


def first_answers(row: dict[str, Any]) -> dict[str, Any]:
  """Returns the row with the first one of several rejected answers."""
  rejected = row.get("rejected")
  if not isinstance(rejected, list) or not _is_several(rejected):
    return row
  return {**row, "rejected": rejected[0]}


def read_answer(row: Row, name: str) -> str | list[Any] | dict[str, Any]:
  """Returns an answer, which may be in a list of one: a text or messages; raises SkipRow."""
  value = row.fields[name]
  if _is_several(value):
    raise SkipRow(f"several_{name}", f"{name} has {len(value)}")
  if isinstance(value, (list, tuple)) and len(value) == 1 and isinstance(value[0], (str, list)):
    value = value[0]
  if not isinstance(value, (list, tuple, dict)):
    return check_text(value, name)
  if not value:
    raise SkipRow(f"empty_{name}")
  return list(value) if isinstance(value, tuple) else value


def read_history(value: Any) -> tuple[Message, ...]:
  """Returns the earlier turns of LLaMA-Factory's alpaca format, [question, answer] each.

  They may be JSON text.
  """
  try:
    value = json.loads(value) if isinstance(value, str) else value
  except (ValueError, RecursionError):
    pass
  if not isinstance(value, list) or not all(isinstance(t, list) and len(t) == 2 for t in value):
    raise SkipRow("not_a_message", "history is not a list of [question, answer]")
  return tuple(
    {"role": role, "content": check_text(text, "a turn of history")}
    for turn in value
    for role, text in zip(("user", "assistant"), turn, strict=True)
  )


def read_tools(row: Row) -> tuple[Any, ...] | None:
  """Returns the schemas of `tools`, which may be JSON text in whole or one by one."""
  value = row.fields.get("tools")
  try:
    if isinstance(value, str):
      value = json.loads(value) if value.strip() else None
    if not value:
      return None
    tools = [json.loads(tool) if isinstance(tool, str) else tool for tool in value]
  except (ValueError, TypeError, RecursionError) as error:
    raise SkipRow("not_tools") from error
  if not isinstance(value, (list, tuple)) or not all(isinstance(t, Mapping) for t in tools):
    raise SkipRow("not_tools")
  check_unicode(tools)
  return tuple(without_none(tools))


def read_variables(row: Row) -> Mapping[str, Any]:
  """Returns `chat_template_kwargs`, an object or its JSON text."""
  value = row.fields.get("chat_template_kwargs")
  try:
    if isinstance(value, str):
      value = json.loads(value) if value.strip() else None
    value = value or {}
  except (ValueError, RecursionError) as error:
    raise SkipRow("not_template_kwargs") from error
  if not isinstance(value, Mapping):
    raise SkipRow("not_template_kwargs")
  check_unicode(value)
  return without_none(value)


def _parsed(fields: dict[str, Any]) -> dict[str, Any]:
  prompts = {n: parse_json_messages(fields[n]) for n in PROMPT_FIELDS if n in fields}
  answers = {n: parse_json_messages(fields[n]) for n in ANSWERS if n in fields}
  # An answer that is the JSON of messages is a text, unless both are and the prompt is no list.
  if isinstance(fields.get("prompt"), list) or any(isinstance(a, str) for a in answers.values()):
    answers = {}
  return {**fields, **prompts, **answers}


def _is_several(value: Any) -> bool:
  """Whether a value is a list of several answers: of strings, or of lists of messages."""
  return (
    isinstance(value, (list, tuple))
    and len(value) > 1
    and (all(isinstance(v, str) for v in value) or all(isinstance(v, (list, tuple)) for v in value))
  )
