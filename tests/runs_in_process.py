"""Small runs in the tests' own process, which share an executable and can be ended at a launch."""

import os
import signal

import pytest

from hosts import TINY
from shared_programs import share_programs
from simpo_jax import run as loop
from simpo_jax.config import default_config
from simpo_jax.launch import Launcher

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


def go(folder, **changes):
  """A run; `train__steps` is the field `train.steps`."""
  c = default_config()
  c.update_from_flattened_dict(
    {**SETTINGS, **{k.replace("__", "."): v for k, v in changes.items()}}
  )
  return loop.run(c, str(folder))


def lose():
  raise Lost


def terminate():
  os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture(autouse=True, scope="module")
def one_executable():
  """Runs of the same program share it."""
  undo = share_programs()
  yield
  undo()


@pytest.fixture
def before_launch(monkeypatch):
  """`before_launch(number, act)`: has `act()` called before the launch of that number."""
  launch, acts = Launcher.__call__, {}

  def wrapped(self, *args, **kwargs):
    if act := acts.pop(len(self.log), None):
      act()
    return launch(self, *args, **kwargs)

  monkeypatch.setattr(Launcher, "__call__", wrapped)
  return acts.__setitem__
