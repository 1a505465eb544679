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


def _before_launches(act):
  """Has `act(number)` called before each of this host's launches."""
  from simpo_jax.runtime.launcher import Launcher

  launch = Launcher.__call__

  def wrapped(self, *args, **kwargs):
    act(len(self.log))
    return launch(self, *args, **kwargs)

  Launcher.__call__ = wrapped


def _note_launches():
  _before_launches(lambda number: _event(f"launch {number}"))


def _before_launch(number, act):
  """Has `act()` called before this host's launch of that number."""
  _before_launches(lambda this: act() if this == number else None)


def other_version():
  """Another version of optax than the others have."""
  import importlib.metadata

  version = importlib.metadata.version
  importlib.metadata.version = lambda name: "0.0.1" if name == "optax" else version(name)


def other_mode():
  """Generates after step 1, where the others train on."""
  from simpo_jax import run
  from simpo_jax.program.ledger import Mode

  after = run.launches_after
  run.launches_after = lambda step, config: [Mode.GENERATE] if step == 1 else after(step, config)


def other_program():
  """Compiles another text, as another source would."""
  from simpo_jax.models import llama

  rms_norm = llama.rms_norm
  llama.rms_norm = lambda x, scale, eps: rms_norm(x, 1.5 * scale, eps)


def _other_pairs(change):
  """Trains on other pairs than the others, from step 2 on: `change` makes one of one."""
  from simpo_jax import run
  from simpo_jax.data.steps import Window

  windows_of = run.windows_of

  def changed(resolved, config):
    window = windows_of(resolved, config)

    def other(number):
      first, *rest = window(number).steps
      return Window([first, *([*map(change, pairs)] for pairs in rest)], None)

    return other

  run.windows_of = changed
  _note_launches()


def other_token():
  """The first token of every prompt is another one."""
  import numpy as np

  _other_pairs(lambda pair: pair._replace(prompt=np.append(pair.prompt[:1] ^ 1, pair.prompt[1:])))


def longer_answers():
  """Every answer is longer, so that rows are packed otherwise and there are more of them."""
  import numpy as np

  _other_pairs(lambda pair: pair._replace(chosen=np.repeat(pair.chosen, 2)))


def other_shuffle():
  """The same pairs in another order."""
  from simpo_jax import run

  stream = run.open_stream
  run.open_stream = lambda pairs, tokenizer, data, size, seed: stream(
    pairs, tokenizer, data, size, seed + 1
  )
  _note_launches()


def other_held_out():
  """The held-out pairs are in another order."""
  from simpo_jax import run

  windows_of = run.windows_of

  def changed(resolved, config):
    resolved.eval_pairs.reverse()
    return windows_of(resolved, config)

  run.windows_of = changed
  _note_launches()


def other_requests():
  """One prompt has another budget."""
  from simpo_jax.runtime.launcher import Launcher

  start = Launcher.__post_init__

  def changed(self, requests):
    requests.each.budget[0, 1] -= 1
    start(self, requests)

  Launcher.__post_init__ = changed
  _note_launches()


def terminated():
  """SIGTERM during launch 1."""

  def act():
    _event("SIGTERM")
    os.kill(os.getpid(), signal.SIGTERM)

  _before_launch(1, act)


def killed(number):
  """SIGKILL in the middle of a launch."""

  def die():
    _event("SIGKILL")
    os.kill(os.getpid(), signal.SIGKILL)

  _before_launch(number, lambda: threading.Timer(0.3, die).start())


def asleep():
  """Does not come to launch 2."""

  def act():
    _event("sleeps")
    time.sleep(600)

  _before_launch(2, act)


DRILLS = {
  "other_version": other_version,
  "other_mode": other_mode,
  "other_program": other_program,
  "other_token": other_token,
  "longer_answers": longer_answers,
  "other_shuffle": other_shuffle,
  "other_held_out": other_held_out,
  "other_requests": other_requests,
  "terminated": terminated,
  "killed_in_launch_0": lambda: killed(0),
  "killed_in_launch_2": lambda: killed(2),
  "asleep": asleep,
}

if __name__ == "__main__":
  DRILLS[sys.argv[1]]()
  sys.argv = ["simpo_jax.main", *sys.argv[2:]]
  runpy.run_module("simpo_jax.main", run_name="__main__")
