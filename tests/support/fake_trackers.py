"""Readers of what trackers have written."""

import json
import sqlite3
import struct

from tensorboard.backend.event_processing import event_accumulator

GROUPS = {"train": "train", "evaluate": "eval", "generate": "generate", "bad_step": "bad_step"}
_BLOCK, _HEAD = 32768, 7  # bytes, of LevelDB's log format, which W&B's files have


def metrics(folder):
  """{tag: [(step, value), ...]} of metrics.jsonl."""
  out = {}
  for line in (folder / "metrics.jsonl").read_text().splitlines():
    row = json.loads(line)
    for name, value in row.items():
      parts = value.items() if isinstance(value, dict) else [(None, value)]
      for part, number in parts:
        if name not in ("step", "mode") and not isinstance(number, (str, list)):
          tag = f"{GROUPS[row['mode']]}/{name}" + (f".{part}".replace(" ", "_") if part else "")
          out.setdefault(tag, []).append((row["step"], number))
  return out


def tensorboard(folder):
  """TensorBoard's own view of a run, whole."""
  names = event_accumulator.DEFAULT_SIZE_GUIDANCE
  view = event_accumulator.EventAccumulator(str(folder / "tensorboard"), dict.fromkeys(names, 0))
  return view.Reload()


def scalars(view):
  """{tag: [(step, value), ...]}"""
  return {t: [(e.step, e.value) for e in view.Scalars(t)] for t in view.Tags()["scalars"]}


def texts(view, tag):
  """[(step, Markdown), ...]"""
  return [(e.step, e.tensor_proto.string_val[0].decode()) for e in view.Tensors(tag)]


def unblocked(block):
  """The text of an indented block, but for its line breaks."""
  lines = block.split("\n")
  assert all(line.startswith("    ") for line in lines)
  return "".join(line[4:] for line in lines)


def wandb_records(folder):
  """The records of each of W&B's own files, in the order of their times."""
  # Protobuf makes the class when the module is imported.
  from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

  for path in sorted((folder / "wandb").glob("offline-run-*/*.wandb")):
    data, at, whole, records = path.read_bytes(), _HEAD, b"", []
    while at + _HEAD <= len(data):
      if _BLOCK - at % _BLOCK < _HEAD:
        at += _BLOCK - at % _BLOCK
        continue
      _, size, kind = struct.unpack("<IHB", data[at : at + _HEAD])
      whole += data[at + _HEAD : at + _HEAD + size]
      at += _HEAD + size
      if kind in (1, 4):  # whole, or the last part
        records.append(Record.FromString(whole))
        whole = b""
    yield records


def wandb_history(records):
  """Rows as dicts, nested names joined by dots."""
  return [
    {".".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
    for record in records
    if record.WhichOneof("record_type") == "history"
  ]


def mlflow_rows(database, query):
  """Of MLflow's own database."""
  connection = sqlite3.connect(database)
  try:
    return connection.execute(query).fetchall()
  finally:
    connection.close()
