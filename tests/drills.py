"""Runs `simpo_jax.main` with something wrong on this host: `python drills.py DRILL FLAGS...`.

Each drill is a function that changes this one process before main starts. What a drill
does to itself later is noted, with its time, in the file `event` of the working folder.
"""

import os
import pathlib
import runpy
import signal
import sys
import threading
import time


def _event(what):
  pathlib.Path("event").write_text(f"{time.time()} {what}")


def _before_launch(number, act):
  """Has `act(launcher)` called before this host's launch of that number."""
  from simpo_jax.launch import Launcher

  launch = Launcher.__call__

  def wrapped(self, *args, **kwargs):
    if len(self.log) == number:
      act(self)
    return launch(self, *args, **kwargs)

  Launcher.__call__ = wrapped


def other_version():
  """Another version of optax than the others have."""
  import importlib.metadata

  version = importlib.metadata.version
  importlib.metadata.version = lambda name: "0.0.1" if name == "optax" else version(name)


def other_mode():
  """Generates after step 1, where the others train on."""
  from simpo_jax import run
  from simpo_jax.ledger import Mode

  after = run.launches_after
  run.launches_after = lambda step, config: [Mode.GENERATE] if step == 1 else after(step, config)


def other_program():
  """Compiles another text, as another source would."""
  from simpo_jax import model

  rms_norm = model.rms_norm
  model.rms_norm = lambda x, scale, eps: rms_norm(x, scale, eps) * 1.5


def terminated():
  """SIGTERM during launch 1."""

  def act(_):
    _event("SIGTERM")
    os.kill(os.getpid(), signal.SIGTERM)

  _before_launch(1, act)


def killed(number):
  """SIGKILL in the middle of a launch."""

  def die():
    _event("SIGKILL")
    os.kill(os.getpid(), signal.SIGKILL)

  _before_launch(number, lambda _: threading.Timer(0.3, die).start())


def asleep():
  """Does not come to launch 2."""

  def act(_):
    _event("sleeps")
    time.sleep(600)

  _before_launch(2, act)


DRILLS = {
  "other_version": other_version,
  "other_mode": other_mode,
  "other_program": other_program,
  "terminated": terminated,
  "killed_in_launch_0": lambda: killed(0),
  "killed_in_launch_2": lambda: killed(2),
  "asleep": asleep,
}

if __name__ == "__main__":
  DRILLS[sys.argv[1]]()
  sys.argv = ["simpo_jax.main", *sys.argv[2:]]
  runpy.run_module("simpo_jax.main", run_name="__main__")
