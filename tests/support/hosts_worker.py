"""Several runs in one process of a group: `python hosts_work.py FOLDER NAME=SETTINGS...`.

SETTINGS is a JSON object of config fields. Of each run, the shards of its final state that
this process holds go into FOLDER/NAME/state_INDEX.npz, keyed by leaf and place.
"""

import json
import pathlib
import sys

import jax
import numpy as np

from simpo_jax import distributed
from simpo_jax.config import default_config
from simpo_jax.config_check import validate


def config(settings):
  """The embedded model in a size for tests, with changes."""
  c = default_config()
  c.train.learning_rate = 1e-3
  c.train.warmup_ratio = 0.0
  c.data.max_length, c.data.max_prompt_length, c.data.row_length = 256, 128, 256
  c.data.embedded_pairs = 64
  c.generate.page_size = c.generate.prefill_chunk = 32
  c.generate.max_new_tokens, c.generate.template = 16, "Count to {index}."
  c.update_from_flattened_dict(settings)
  return validate(c)


def _shards(state):
  out = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    for shard in leaf.addressable_shards:
      place = ",".join(
        f"{s.start or 0}:{s.stop or n}" for s, n in zip(shard.index, leaf.shape, strict=True)
      )
      out[f"{jax.tree_util.keystr(path)}@{place}"] = np.asarray(shard.data)
  return out


def work(folder, runs):
  """Does the runs, one after the other."""
  distributed.start(distributed.Options())
  from simpo_jax import run as loop
  from support.shared_programs import share_programs

  share_programs()
  for name, settings in runs.items():
    state, _ = loop.run(config(settings), str(folder / name))
    np.savez(folder / name / f"state_{jax.process_index()}.npz", **_shards(state))
  distributed.finish()


if __name__ == "__main__":
  work(
    pathlib.Path(sys.argv[1]),
    {name: json.loads(text) for name, _, text in (a.partition("=") for a in sys.argv[2:])},
  )
