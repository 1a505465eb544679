"""All that a run leaves behind and that must be the same however it came about: no times."""

import json

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp

from simpo_jax.checkpoint import layout

TIMES = ("step_seconds", "tokens_per_second", "data_wait_seconds")


def without_times(row):
  return {k: v for k, v in row.items() if k not in TIMES}


def rows(path):
  """Of a JSONL file."""
  return [without_times(json.loads(line)) for line in path.read_text().splitlines()]


def record(folder):
  return json.loads((folder / "run.json").read_text())


def saved_state(folder):
  """The last checkpoint's position, and the bytes of its arrays as Orbax itself reads them."""
  last = layout.positions(folder / "checkpoints")[-1]
  path = folder.absolute() / "checkpoints" / last.name
  reader = ocp.PyTreeCheckpointer()
  item = reader.metadata(path).item_metadata
  assert item is not None
  as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item.tree)
  tree = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
  return last, jax.tree.map(bytes_of, tree)


def bytes_of(x):
  """An array's bytes: of equal arrays they may differ, in the signs of zeros and in NaN."""
  return np.frombuffer(np.asarray(x).tobytes(), np.uint8)


def outcome(folder):
  """Metrics, samples, held-out pairs, launches and the last checkpoint of a finished workdir."""
  files = sorted(
    p for name in ("samples", "evaluations") for p in (folder / name).rglob("*") if p.is_file()
  )
  return {
    "status": record(folder)["status"],
    "launches": record(folder)["launches"],
    "metrics": rows(folder / "metrics.jsonl"),
    "files": {
      str(p.relative_to(folder)): (
        rows(p) if p.suffix == ".jsonl" else without_times(json.loads(p.read_text()))
      )
      for p in files
    },
    "saved": saved_state(folder),
  }


def assert_same(found, expected):
  """Two outcomes, the checkpoints' trees bit for bit."""
  rest = {name: part for name, part in expected.items() if name != "saved"}
  assert {name: part for name, part in found.items() if name != "saved"} == rest
  assert_same_state(found["saved"], expected["saved"])


def differing(found, expected):
  """The names of the parts in which two outcomes differ."""
  names = [name for name in expected if name != "saved" and found[name] != expected[name]]
  try:
    assert_same_state(found["saved"], expected["saved"])
  except AssertionError:
    names.append("saved")
  return names


def assert_same_state(found, expected):
  """Two checkpoints, as `saved_state` has them."""
  assert found[0] == expected[0]
  chex.assert_trees_all_equal(found[1], expected[1])
