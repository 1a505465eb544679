"""Records of prepared pairs: text, not tokens, so that they work with any tokenizer.

{"id", "prompt", "messages": [{"role", "content"}], "chosen", "rejected", "row"}, all strings. For
a conversation, `messages` holds the turns and `prompt` is empty; for plain text it is the reverse.
If a conversation has more than that (tools, tool calls, reasoning, answers of several turns), it is
in `row`, as JSON text with the fields of `rows.formats`, and the others but `id` are empty.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from simpo_jax.data.rows.formats import Conversation, Messages
from simpo_jax.data.types import TURN
from simpo_jax.tokenizer.chat_template import placeholder

RECORD = "prepared.json"  # next to the shards: their source and checksums, and skipped rows
FORMAT = 2  # version of records and of prepared.json
DESCRIPTION = "Preference pairs for simpo_jax: one prompt, a chosen and a rejected response."


def features():
  """Returns the TFDS features of a record."""
  from tensorflow_datasets import features as tfds

  text = tfds.Text
  return tfds.FeaturesDict(
    {
      "id": text(doc="where the pair came from: FILE:ROW"),
      "prompt": text(doc="a plain prompt, which sees no chat template; or empty"),
      "messages": tfds.Sequence(
        {
          "role": text(doc="system, developer, user, assistant, tool or ipython"),
          "content": text(),
        },
        doc="the turns of the prompt; the last is not the assistant's",
      ),
      "chosen": text(),
      "rejected": text(),
      "row": text(doc="JSON of a conversation that the other fields cannot hold; or empty"),
    }
  )


def serializer() -> Callable[[dict[str, Any]], bytes]:
  """Returns a deterministic function from a record to its bytes, a tf.train.Example."""
  from tensorflow_datasets.core.example_serializer import ExampleSerializer

  types: Any = features()
  example = ExampleSerializer(types.get_serialized_info()).get_tf_example
  # TFDS's serialize_example does not request deterministic order of protobuf's map entries.
  return lambda r: example(types.encode_example(r)).SerializeToString(deterministic=True)


def to_record(row_id: str, pair: Conversation) -> dict[str, Any]:
  """Converts a pair to a record."""
  record = {"id": row_id, "prompt": "", "messages": [], "chosen": "", "rejected": "", "row": ""}
  answers = {"chosen": pair.chosen, "rejected": pair.rejected}
  if isinstance(pair.prompt, str):
    return {**record, "prompt": pair.prompt, **answers}
  texts = {name: _only_text(turns) for name, turns in answers.items()}
  beside = {"tools": pair.tools, "chat_template_kwargs": dict(pair.variables)}
  if None not in texts.values() and _is_simple(pair.prompt) and not any(beside.values()):
    return {**record, "messages": list(pair.prompt), **texts}
  row = {"prompt": pair.prompt, **answers}
  row |= {name: value for name, value in beside.items() if value}
  return {**record, "row": json.dumps(row, ensure_ascii=False, default=placeholder)}


def _only_text(turns: Messages | str) -> str | None:
  """The text of an answer that is nothing else."""
  if isinstance(turns, str) or len(turns) != 1 or not _is_simple(turns):
    return None
  return turns[0]["content"]


def _is_simple(turns: Messages) -> bool:
  return all(turn.keys() == set(TURN) for turn in turns)


def to_row(record: Mapping[str, Any]) -> dict[str, Any]:
  """Converts a decoded record to a row for `formats.to_conversation`.

  Accepts records of any TFDS dataset: bytes become text, and a sequence of dicts, which TFDS
  decodes as a dict of arrays, becomes a list of dicts.
  """
  row = {name: _plain(value) for name, value in record.items()}
  if "row" in row and {*row} == {*_RECORD}:
    whole = row.pop("row")
    if whole:
      return {"id": row["id"], **json.loads(whole)}
  messages = row.pop("messages", None)
  return {**row, "prompt": messages} if messages else row


_RECORD = ("id", "prompt", "messages", "chosen", "rejected", "row")


def _plain(value: Any) -> Any:
  if isinstance(value, bytes):
    return value.decode("utf-8", errors="replace")
  if isinstance(value, Mapping):
    columns = {name: _plain(v) for name, v in value.items()}
    if columns and all(isinstance(c, list) for c in columns.values()):
      return [dict(zip(columns, turn, strict=True)) for turn in zip(*columns.values(), strict=True)]
    return columns
  if hasattr(value, "tolist"):
    value = value.tolist()
  if isinstance(value, (list, tuple)):
    return [_plain(v) for v in value]
  return value
