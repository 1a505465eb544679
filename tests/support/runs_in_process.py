"""Small runs in the tests' own process, which share an executable and can be ended at a launch."""

import os
import signal

from simpo_jax import run as loop
from simpo_jax.config import default_config
from support.hosts import TINY

SETTINGS = {
  **TINY,
  "train.steps": 5,
  "train.learning_rate": 1e-3,
  "data.eval_fraction": 0.1,
  "generate.at_steps": (2, 4),
  "evaluate.every": 2,
  "checkpoint.every": 2,
}
LAUNCHES = [*["train"] * 2, "generate", "evaluate"] * 2 + ["train"]


class Lost(BaseException):
  """Stands for the end of the process: nothing after it is run."""


def go(folder, into_existing=False, /, **changes):
  """A run; `train__steps` is the field `train.steps`."""
  c = default_config()
  c.update_from_flattened_dict(
    {**SETTINGS, **{k.replace("__", "."): v for k, v in changes.items()}}
  )
  return loop.run(c, str(folder), into_existing)


def lose():
  raise Lost


def terminate():
  os.kill(os.getpid(), signal.SIGTERM)
