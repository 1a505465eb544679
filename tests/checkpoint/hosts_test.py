"""Checkpoints of four processes: no program but the one, the same step on all, any mesh after."""

import json

import jax
import numpy as np
import pytest

from simpo_jax.checkpoint import layout, manager
from simpo_jax.export.runs import export_run
from simpo_jax.program.state import abstract_state
from simpo_jax.runtime.resolve import resolve
from support.checkpoint_worker import SETTINGS, STOPS
from support.folders import TESTS
from support.hosts import run_group
from support.hosts_worker import config
from support.run_outcome import rows

pytestmark = [pytest.mark.hosts, pytest.mark.slow]

PROCESSES, DEVICES = 4, 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  folder = tmp_path_factory.mktemp("hosts")
  work = [str(TESTS / "support" / "checkpoint_worker.py"), str(folder)]
  ends = run_group(folder, [work] * PROCESSES, devices=DEVICES)
  assert [end.code for end in ends] == [0] * PROCESSES, ends[0].err[-4000:]
  return folder


def results(folder):
  return [json.loads((folder / f"result_{i}.json").read_text()) for i in range(PROCESSES)]


def test_nothing_but_the_program_was_compiled(folder):
  """Five runs of one program, some ten saves and two restores."""
  assert [r["compiles"] for r in results(folder)] == [1] * PROCESSES


@pytest.mark.parametrize("name", STOPS)
def test_a_stop_on_one_host_is_saved_by_all_and_gone_on_from(folder, name):
  for result in results(folder):
    assert "stopped after step 2 of 4; start the same command again" in result["stopped"][name]
    assert result["equal"][name], "not the bits of the undisturbed run"
  record = json.loads((folder / name / "run.json").read_text())
  assert [r["step"] for r in record["resumes"]] == [2]
  assert record["launches"] == ["train", "train", "generate", "train", "train"]


@pytest.mark.parametrize("name", STOPS)
def test_rows_and_samples_are_those_of_the_undisturbed_run(folder, name):
  for path in sorted((folder / "undisturbed").rglob("*.jsonl")):
    assert rows(folder / name / path.relative_to(folder / "undisturbed")) == rows(path)
  samples = list((folder / name / "samples").rglob("*.jsonl"))
  assert len(samples) == PROCESSES


def test_one_process_reads_what_four_have_written(folder):
  run = resolve(config(SETTINGS))
  last = folder / "undisturbed" / "checkpoints" / "step_000004"
  state = manager.restore(last, abstract_state(run.program))
  leaves = {jax.tree_util.keystr(p): x for p, x in jax.tree_util.tree_leaves_with_path(state)}
  seen = set()
  for process in range(PROCESSES):
    for key, part in np.load(folder / f"undisturbed_{process}.npz").items():
      name, place = key.split("@")
      index = tuple(slice(*bounds) for bounds in json.loads(place))
      assert np.asarray(leaves[name])[index].tobytes() == part.tobytes()
      seen.add(name)
  assert seen == set(leaves)


def _exported(folder):
  return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "README.md"}


@pytest.mark.parametrize("name", ("undisturbed", *STOPS))
def test_four_processes_export_what_one_does(folder, name, tmp_path):
  """They at the end of their run, one process out of the checkpoint that they have left."""
  found = _exported(folder / name / "export")
  assert len([file for file in found if file.endswith(".safetensors")]) > PROCESSES
  export_run(folder / name, tmp_path / "out")
  assert _exported(tmp_path / "out") == found == _exported(folder / "undisturbed" / "export")


def test_an_export_does_not_depend_on_the_mesh_that_saved(folder, tmp_path):
  """One process saves what four have saved: other pieces on disk, the same folder."""
  last = folder / "undisturbed" / "checkpoints" / "step_000004"
  state = manager.restore(last, abstract_state(resolve(config(SETTINGS)).program))
  saving = manager.Checkpoints(tmp_path / "checkpoints", 1, 0)
  saving.save(layout.Position(4), state, layout.read_metadata(last))
  saving.wait()
  saving.close()
  export_run(tmp_path, tmp_path / "out")
  assert _exported(tmp_path / "out") == _exported(folder / "undisturbed" / "export")
