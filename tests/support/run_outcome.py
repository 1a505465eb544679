"""All that a run leaves behind and that must be the same however it came about: no times."""

import json

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
  """The last checkpoint and its arrays, as another reader of Orbax's format finds them."""
  last = layout.positions(folder / "checkpoints")[-1]
  path = folder.absolute() / "checkpoints" / last.name
  reader = ocp.PyTreeCheckpointer()
  item = reader.metadata(path).item_metadata
  assert item is not None
  as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item.tree)
  tree = reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
  return last, [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


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
