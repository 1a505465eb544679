"""Checkpoints: a run that was stopped or lost and goes on is, bit for bit, the one that was not."""

import json
import os
import signal

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from hosts import TINY
from simpo_jax import checkpoint, monitor
from simpo_jax import run as loop
from simpo_jax.config import default_config
from simpo_jax.errors import Stopped
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
# train 0 1, generate 2, evaluate 3, train 4 5, generate 6, evaluate 7, train 8
LAUNCHES = [*["train"] * 2, "generate", "evaluate"] * 2 + ["train"]
TIMES = ("step_seconds", "tokens_per_second")


class Lost(BaseException):
  """Stands for the end of the process: nothing after it is run."""


def config(**changes):
  c = default_config()
  c.update_from_flattened_dict(
    {**SETTINGS, **{k.replace("__", "."): v for k, v in changes.items()}}
  )
  return c


@pytest.fixture(autouse=True, scope="module")
def one_executable():
  """Runs of the same program share what takes most of a run's time."""
  compiled, compile_program = {}, loop.compile_program

  def compile_once(cfg, lowered):
    if lowered.fingerprint not in compiled:
      compiled[lowered.fingerprint] = compile_program(cfg, lowered)
    return compiled[lowered.fingerprint]

  loop.compile_program = compile_once
  yield
  loop.compile_program = compile_program


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


def lose():
  raise Lost


def terminate():
  os.kill(os.getpid(), signal.SIGTERM)


def rows(folder, name="metrics.jsonl"):
  lines = (folder / name).read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if k not in TIMES} for line in lines]


def outcome(state, folder):
  """All that must be the same, times left out."""
  samples = sorted(p for p in (folder / "samples").rglob("*") if p.is_file())
  return {
    "state": [np.asarray(x).tobytes() for x in jax.tree.leaves(state)],
    "metrics": rows(folder),
    "launches": record(folder)["launches"],
    "samples": {
      str(p.relative_to(folder)): (
        rows(folder, p.relative_to(folder))
        if p.suffix == ".jsonl"
        else {k: v for k, v in json.loads(p.read_text()).items() if k not in TIMES}
      )
      for p in samples
    },
    "saved": saved_state(folder),
  }


def saved_state(folder):
  """The last checkpoint's arrays, as another reader of Orbax's format finds them."""
  last = checkpoint.positions(folder / "checkpoints")[-1]
  tree = ocp.PyTreeCheckpointer().restore(folder.absolute() / "checkpoints" / last.name)
  return last, [np.asarray(x).tobytes() for x in jax.tree.leaves(tree)]


def record(folder):
  return json.loads((folder / "run.json").read_text())


def names(folder):
  return sorted(p.name for p in (folder / "checkpoints").iterdir())


def go(folder, **changes):
  return loop.run(config(**changes), str(folder))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, one_executable):
  folder = tmp_path_factory.mktemp("undisturbed") / "run"
  state, _ = go(folder)
  return outcome(state, folder), folder


def test_what_is_kept(undisturbed):
  _, folder = undisturbed
  assert names(folder) == ["step_000004", "step_000005"]
  about = checkpoint.read_about(folder / "checkpoints" / "step_000004")
  assert about["position"] == {"step": 4, "done": 0}
  assert about["data"] == {"steps": 4, "pairs": 8}
  assert [launch["mode"] for launch in about["launches"]] == LAUNCHES[:6]
  assert about["config"] == json.loads((folder / "config.json").read_text())
  assert about["program"] == record(folder)["program"]
  assert set(about) >= {"seeds", "identity", "versions", "mesh", "files", "arrays"}
  assert record(folder)["resumes"] == []
  waits = record(folder)["timings"]["checkpoint_seconds"]
  assert [w["step"] for w in waits] == [2, 4, 5] and all(w["seconds"] > 0 for w in waits)


@pytest.mark.parametrize("number", (0, 2, 3, 6, 7))
def test_a_stop_is_saved_and_gone_on_from(tmp_path, undisturbed, before_launch, number):
  before_launch(number, terminate)  # seen by all hosts in the launch after it
  with pytest.raises(Stopped, match="start the same command again") as stopped:
    go(tmp_path / "run")
  assert stopped.value.exit_code == 75
  assert record(tmp_path / "run")["status"] == "stopped"
  assert record(tmp_path / "run")["launches"] == [*LAUNCHES[: number + 1], "stop"]
  compiles = monitor.compile_count()
  state, folder = go(tmp_path / "run")
  assert monitor.compile_count() == compiles, "saving or restoring has compiled something"
  assert outcome(state, folder) == undisturbed[0]
  [resume] = record(folder)["resumes"]
  assert resume["step"] == LAUNCHES[: number + 1].count("train")
  assert not (folder / "attempts").exists()


@pytest.mark.parametrize("number", (3, 4, 6, 8))
def test_a_lost_run_goes_on_from_its_last_checkpoint(tmp_path, undisturbed, before_launch, number):
  before_launch(number, lose)
  with pytest.raises(Lost):
    go(tmp_path / "run")
  state, folder = go(tmp_path / "run")
  assert outcome(state, folder) == undisturbed[0]
  assert [r["step"] for r in record(folder)["resumes"]] == [4 if number >= 6 else 2]


def test_a_run_without_a_checkpoint_begins_anew(tmp_path, undisturbed, before_launch):
  before_launch(1, lose)
  with pytest.raises(Lost):
    go(tmp_path / "run")
  state, folder = go(tmp_path / "run")
  assert outcome(state, folder) == undisturbed[0]
  assert record(folder)["resumes"] == []
  assert (folder / "attempts" / "0001" / "metrics.jsonl").exists()


def test_resume_can_be_declined(tmp_path, undisturbed, before_launch):
  before_launch(4, lose)
  with pytest.raises(Lost):
    go(tmp_path / "run")
  state, folder = go(tmp_path / "run", checkpoint__resume=False)
  assert outcome(state, folder) == undisturbed[0]
  assert (folder / "attempts" / "0001" / "checkpoints" / "step_000002").is_dir()
