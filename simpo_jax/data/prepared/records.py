"""The record of a prepared pair: text, not tokens, so that any tokenizer can be used later.

{"id", "prompt", "messages": [{"role", "content"}], "chosen", "rejected"}, all strings. A
conversation has its turns in `messages` and no `prompt`; plain text has a `prompt` and no
messages.
"""

from collections.abc import Callable, Mapping
from typing import Any

from simpo_jax.data.row_formats import Conversation

RECORD = "prepared.json"  # beside the shards: their source, their checksums, the skips
TRAIN, HELD_OUT = "train", "test"  # the splits that `prepare` makes
FORMAT = 1  # of records and of prepared.json
DESCRIPTION = "Preference pairs for simpo_jax: one prompt, a chosen and a rejected response."


def features():
  """The record's types, for TFDS."""
  from tensorflow_datasets import features as tfds

  text = tfds.Text
  return tfds.FeaturesDict(
    {
      "id": text(doc="where the pair came from: FILE:ROW"),
      "prompt": text(doc="a plain prompt, which sees no chat template; or empty"),
      "messages": tfds.Sequence(
        {"role": text(doc="system, user or assistant"), "content": text()},
        doc="the turns of the prompt; the last is not the assistant's",
      ),
      "chosen": text(),
      "rejected": text(),
    }
  )


def serializer() -> Callable[[dict[str, Any]], bytes]:
  """The function from a record to its bytes as TFDS reads them, always the same for a record."""
  from tensorflow_datasets.core.example_serializer import ExampleSerializer

  types: Any = features()
  example = ExampleSerializer(types.get_serialized_info()).get_tf_example
  # TFDS's own serialize_example leaves the order of the fields to protobuf's hashes.
  return lambda r: example(types.encode_example(r)).SerializeToString(deterministic=True)


def to_record(row_id: str, pair: Conversation) -> dict[str, Any]:
  """The record of a pair."""
  plain = isinstance(pair.prompt, str)
  return {
    "id": row_id,
    "prompt": pair.prompt if plain else "",
    "messages": [] if plain else list(pair.prompt),
    "chosen": pair.chosen,
    "rejected": pair.rejected,
  }


def to_row(record: Mapping[str, Any]) -> dict[str, Any]:
  """A row for `row_formats.to_conversation`, from a decoded record.

  TFDS datasets by others come through as they are: bytes become text, a sequence of
  dicts, which TFDS keeps as a dict of arrays, becomes a list of dicts.
  """
  row = {name: _plain(value) for name, value in record.items()}
  messages = row.pop("messages", None)
  return {**row, "prompt": messages} if messages else row


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
