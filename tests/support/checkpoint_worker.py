"""One of several processes that stop a run and go on with it: `python checkpoint_work.py FOLDER`.

Leaves FOLDER/result_INDEX.json: what this process has compiled, and how the runs ended.
"""

import json
import os
import pathlib
import signal
import sys
from typing import Any

import jax
import numpy as np

from simpo_jax import distributed
from simpo_jax.errors import Stopped
from simpo_jax.program import compile_count
from support.hosts_worker import config

SETTINGS = {
  "train.steps": 4,
  "train.batch_size": 4,
  "data.max_length": 64,
  "data.max_prompt_length": 32,
  "data.row_length": 128,
  "data.embedded_pairs": 24,
  "generate.count": 5,
  "generate.max_new_tokens": 8,
  "generate.page_size": 16,
  "generate.at_steps": (2,),
  "evaluate.at_end": False,
  "checkpoint.every": 1,
  "export.at_end": True,
  "export.shard_gb": 1e-4,  # several files
}
STOPS = {"in_training": 1, "in_generation": 2}  # the launch during which one host is told to stop


def shards(state):
  """This process's parts of the state, by leaf and place."""
  out = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    for shard in leaf.addressable_shards:
      place = [[s.start or 0, s.stop or n] for s, n in zip(shard.index, leaf.shape, strict=True)]
      out[f"{jax.tree_util.keystr(path)}@{json.dumps(place)}"] = np.asarray(shard.data)
  return out


def work(folder):
  distributed.start(distributed.Options())
  from simpo_jax import run as loop
  from simpo_jax.runtime.launcher import Launcher
  from support.shared_programs import share_programs

  share_programs()
  launch, stop_at = Launcher.__call__, None

  def wrapped(self, *args, **kwargs):
    if len(self.log) == stop_at and jax.process_index() == 1:
      os.kill(os.getpid(), signal.SIGTERM)
    return launch(self, *args, **kwargs)

  Launcher.__call__ = wrapped
  process = jax.process_index()
  state, _ = loop.run(config(SETTINGS), str(folder / "undisturbed"))
  expected = shards(state)
  np.savez(folder / f"undisturbed_{process}.npz", **expected)
  result: dict[str, Any] = {"equal": {}, "stopped": {}}
  for name, stop_at in STOPS.items():  # noqa: B007  `wrapped` reads it
    try:
      loop.run(config(SETTINGS), str(folder / name))
    except Stopped as e:
      result["stopped"][name] = str(e)
    stop_at = None
    state, _ = loop.run(config(SETTINGS), str(folder / name))
    found = shards(state)
    result["equal"][name] = found.keys() == expected.keys() and all(
      found[key].tobytes() == expected[key].tobytes() for key in expected
    )
  result["compiles"] = compile_count.compile_count()
  (folder / f"result_{process}.json").write_text(json.dumps(result))
  distributed.finish()


if __name__ == "__main__":
  work(pathlib.Path(sys.argv[1]))
