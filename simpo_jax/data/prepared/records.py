"""Records of prepared pairs: text, not tokens, so that they work with any tokenizer.

{"id", "prompt", "messages": [{"role", "content"}], "chosen", "rejected"}, all strings. For a
conversation, `messages` holds the turns and `prompt` is empty; for plain text it is the reverse.
"""

from collections.abc import Callable, Mapping
from typing import Any

from simpo_jax.data.row_formats import Conversation

RECORD = "prepared.json"  # next to the shards: their source and checksums, and skipped rows
TRAIN, HELD_OUT = "train", "test"  # the splits that `prepare` writes
FORMAT = 1  # version of records and of prepared.json
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
        {"role": text(doc="system, user or assistant"), "content": text()},
        doc="the turns of the prompt; the last is not the assistant's",
      ),
      "chosen": text(),
      "rejected": text(),
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
  plain = isinstance(pair.prompt, str)
  return {
    "id": row_id,
    "prompt": pair.prompt if plain else "",
    "messages": [] if plain else list(pair.prompt),
    "chosen": pair.chosen,
    "rejected": pair.rejected,
  }


def to_row(record: Mapping[str, Any]) -> dict[str, Any]:
  """Converts a decoded record to a row for `row_formats.to_conversation`.

  Accepts records of any TFDS dataset: bytes become text, and a sequence of dicts, which TFDS
  decodes as a dict of arrays, becomes a list of dicts.
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
