"""Files beside data and checkpoints that say what they are: believed, or refused in one line."""

import hashlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpo_jax.checkpoint import layout
from simpo_jax.data.prepared.builder import Target, build
from simpo_jax.data.prepared.dataset import open_prepared, verify
from simpo_jax.errors import UserError
from support.fuzz_damage import EXTREMES, damaged_bytes, damaged_json, examples
from support.sources import find_files
from support.tiny_model_files import json_text

ROWS = [{"prompt": f"Say {i}.", "chosen": f"{i}!", "rejected": "No."} for i in range(9)]
RECORDS = ("prepared.json", "dataset_info.json", "features.json")


def damaged_file(value):
  return st.one_of(damaged_json(value).map(json_text), damaged_bytes(json_text(value)), EXTREMES)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
  """The folder of a prepared dataset, and what its records hold."""
  here = tmp_path_factory.mktemp("prepared")
  (here / "a.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
  target = Target(here / "out", "mine", "1.0.0", {})
  build(find_files(str(here / "a.jsonl")), target, 0.3, 0.1, 1)
  return target.folder, {name: json.loads((target.folder / name).read_text()) for name in RECORDS}


@examples(150)
@given(data=st.data(), name=st.sampled_from(RECORDS))
def test_records_of_a_dataset(dataset, data, name):
  folder, records = dataset
  for known, value in records.items():
    (folder / known).write_bytes(json_text(value))
  (folder / name).write_bytes(data.draw(damaged_file(records[name])))
  try:
    prepared = open_prepared(f"tfds:{folder}")
    assert len(prepared) > 0
    for index in (0, len(prepared) - 1):
      row_id, row = prepared.read(index)
      assert isinstance(row_id, str) and isinstance(row, dict)
  except UserError as error:
    assert str(error).isprintable()
  try:
    verify(f"tfds:{folder}", folder)
  except UserError as error:
    assert str(error).isprintable()


CONTENT = b"weights"
METADATA = {
  "position": {"step": 3, "done": 0},
  "launches": [{"mode": "train", "step": 1}],
  "metrics_bytes": 100,
  "bad_steps": [],
  "identity": {"weights": "abc"},
  "arrays": {"['params']['embed']": [[4, 4], "float32"]},
  "files": {"d/a": [len(CONTENT), hashlib.sha256(CONTENT).hexdigest()]},
  "versions": {"jax": "1"},
}


def with_checksum(value):
  """Anybody can make a seal that fits."""
  return json_text(layout.with_checksum(value) if isinstance(value, dict) else value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp("checkpoint")
  (folder / "d").mkdir()
  (folder / "d" / "a").write_bytes(CONTENT)
  (folder / layout.METADATA).write_bytes(with_checksum(METADATA))
  assert layout.verify(folder) is None
  return folder


@examples(300)
@given(
  text=st.one_of(
    damaged_json(METADATA).map(with_checksum), damaged_bytes(with_checksum(METADATA)), EXTREMES
  )
)
def test_what_a_checkpoint_says_of_itself(saved, text):
  (saved / layout.METADATA).write_bytes(text)
  problem = layout.verify(saved)
  if problem is not None:
    assert problem
    return
  about = layout.read_metadata(saved)
  assert layout.Position(**about["position"]).name
  assert about["metrics_bytes"] >= 0 and list(about["launches"]) == about["launches"]
  assert all(name == "d/a" for name in about["files"])
