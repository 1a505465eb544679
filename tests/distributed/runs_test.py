"""Real processes as the hosts of one run: the same results as one process, bit for bit where
the mesh is the same, and nothing but the one program launched."""

import json
import os
import re

import numpy as np
import pytest

from support.folders import ROOT, TESTS
from support.hosts import run_group

pytestmark = pytest.mark.hosts

WORK = str(TESTS / "support" / "hosts_worker.py")
GENERATES = {"generate.at_steps": [2], "generate.count": 12}
RUNS = {"interleaved": GENERATES, "again": GENERATES, "train_only": {}}
GLOBAL = {
  **GENERATES,
  "generate.mode": "global_mesh",
  "train.steps": 2,
  "evaluate.at_end": False,
}
UNEVEN = {
  "generate.at_steps": [1],
  "train.steps": 1,
  "generate.count": 127,
  "generate.max_new_tokens": 4,
  "generate.max_slots": 22,
  "evaluate.at_end": False,
}


def _group(folder, runs, processes, devices):
  arguments = [f"{name}={json.dumps(settings)}" for name, settings in runs.items()]
  ends = run_group(folder, [[WORK, str(folder), *arguments]] * processes, devices, timeout=580)
  assert [end.code for end in ends] == [0] * processes, ends[0].err[-3000:]
  return folder


@pytest.fixture(scope="module")
def one(tmp_path_factory):
  """One process with one device."""
  return _group(tmp_path_factory.mktemp("one"), {"interleaved": GENERATES}, 1, 1)


@pytest.fixture(scope="module")
def sixteen(tmp_path_factory):
  """Four processes with four devices each, the shape of a v5p-32."""
  return _group(tmp_path_factory.mktemp("sixteen"), RUNS, 4, 4)


def _record(folder, name):
  return json.loads((folder / name / "run.json").read_text())


def _samples(folder, name):
  files = sorted((folder / name).glob("samples/*/host_*.jsonl"))
  rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
  return sorted(rows, key=lambda r: r["prompt_index"])


def _tokens(folder, name):
  return [(r["prompt_index"], r["generated_token_ids"]) for r in _samples(folder, name)]


def _metrics(folder, name, mode="train"):
  rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
  timed = ("step_seconds", "tokens_per_second", "data_wait_seconds")
  return [{k: v for k, v in r.items() if k not in timed} for r in rows if r["mode"] == mode]


def _state(folder, name):
  """Every shard of the state of every process, by its place; replicas must agree."""
  out = {}
  for file in sorted((folder / name).glob("state_*.npz")):
    for key, value in np.load(file).items():
      np.testing.assert_array_equal(value, out.setdefault(key, value))
  return out


def _whole(shards):
  """The arrays that the shards are of."""
  out = {}
  for key, value in shards.items():
    leaf, _, place = key.rpartition("@")
    index = tuple(slice(*map(int, span.split(":"))) for span in place.split(",") if span)
    out.setdefault(leaf, []).append((index, value))
  arrays = {}
  for leaf, parts in out.items():
    shape = [max(i[axis].stop for i, _ in parts) for axis in range(parts[0][1].ndim)]
    arrays[leaf] = np.full(shape, np.nan)
    for index, value in parts:
      arrays[leaf][index] = value
  return arrays


@pytest.mark.slow
def test_every_process_compiles_once_and_launches_the_same(sixteen):
  hosts = _record(sixteen, "interleaved")["hosts"]
  assert len(hosts) == 4
  launches = ["train", "train", "generate", *["train"] * 5, "evaluate"]
  for host in hosts:
    assert (host["compiles"], host["executables"]) == (1, 1)
    assert host["launches"] == launches
    assert host["program"] == hosts[0]["program"]


@pytest.mark.slow
def test_two_runs_are_bit_identical(sixteen):
  first, again = _state(sixteen, "interleaved"), _state(sixteen, "again")
  assert first.keys() == again.keys() and len(first) > 100
  for key, value in first.items():
    np.testing.assert_array_equal(value, again[key], err_msg=key)
  for mode in ("train", "generate", "evaluate"):
    rows = _metrics(sixteen, "interleaved", mode)
    assert rows and rows == _metrics(sixteen, "again", mode)
  assert _samples(sixteen, "interleaved") == _samples(sixteen, "again")


@pytest.mark.slow
def test_generation_leaves_training_untouched(sixteen):
  first, alone = _state(sixteen, "interleaved"), _state(sixteen, "train_only")
  assert "generate" not in _record(sixteen, "train_only")["launches"]
  for key, value in first.items():
    np.testing.assert_array_equal(value, alone[key], err_msg=key)
  assert _metrics(sixteen, "interleaved") == _metrics(sixteen, "train_only")


@pytest.mark.slow
def test_samples_equal_those_of_one_process(sixteen, one):
  expected = _tokens(one, "interleaved")
  assert [index for index, _ in expected] == list(range(12))
  assert _tokens(sixteen, "interleaved") == expected


def test_the_global_mesh_generates_the_same(tmp_path, one):
  folder = _group(tmp_path, {"global": GLOBAL}, 2, 2)
  assert _tokens(folder, "global") == _tokens(one, "interleaved")


@pytest.mark.slow
def test_parameters_equal_those_of_one_process(sixteen, one):
  ours, expected = (_whole(_state(folder, "interleaved")) for folder in (sixteen, one))
  assert ours.keys() == expected.keys()
  for leaf, value in expected.items():
    assert np.isfinite(value).all() and np.isfinite(ours[leaf]).all(), leaf
    if leaf.startswith(".params"):
      np.testing.assert_allclose(ours[leaf], value, atol=2e-5, err_msg=leaf)
  for ours, expected in zip(
    _metrics(sixteen, "interleaved"), _metrics(one, "interleaved"), strict=True
  ):
    assert ours.pop("mode") == expected.pop("mode") == "train"
    assert ours == pytest.approx(expected, abs=1e-5, rel=1e-5)


@pytest.mark.slow
def test_each_host_writes_its_own_samples_and_process_0_the_summary(sixteen):
  folder = sixteen / "interleaved" / "samples" / "step_000002"
  for host in range(4):
    lines = (folder / f"host_{host:04d}_of_0004.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [r["prompt_index"] for r in rows] == list(range(host, 12, 4))
    assert {(r["process_index"], r["process_count"]) for r in rows} == {(host, 4)}
  summary = json.loads((folder / "summary.json").read_text())
  assert [r["process_index"] for r in summary["results"]] == [0, 1, 2, 3] * 3
  # Answers of other hosts, out of the launch's own report.
  samples = {r["prompt_index"]: r for r in _samples(sixteen, "interleaved")}
  assert summary["samples"] == [samples[index] for index in range(3)]


@pytest.mark.slow
def test_prompts_that_do_not_divide_among_three_hosts(tmp_path):
  folder = _group(tmp_path, {"uneven": UNEVEN}, 3, 1)
  (tmp_path / "one").mkdir()
  one = _group(tmp_path / "one", {"uneven": UNEVEN}, 1, 1)
  files = sorted(folder.glob("uneven/samples/*/host_*.jsonl"))
  assert [len(f.read_text().splitlines()) for f in files] == [43, 42, 42]
  assert _tokens(folder, "uneven") == _tokens(one, "uneven")
  assert len(_tokens(folder, "uneven")) == 127


@pytest.mark.slow
def test_the_command_line_on_many_hosts(tmp_path):
  """launch/local.py, its exit code and what it shows."""
  import subprocess
  import sys

  from support.hosts import QUICK, TINY, flags

  done = subprocess.run(
    [sys.executable, str(ROOT / "launch" / "local.py"), "--processes=2", "--devices=2", "--"]
    + flags(tmp_path / "run", {**TINY, "train.steps": 2}),
    capture_output=True,
    text=True,
    timeout=240,
    cwd=ROOT,
    env={**os.environ, "XLA_FLAGS": QUICK},
  )
  assert done.returncode == 0, done.stderr[-3000:]
  record = _record(tmp_path, "run")
  assert record["status"] == "done" and record["processes"] == 2
  assert record["devices"]["mesh"] == {"host": 2, "data": 1, "fsdp": 2, "tensor": 1}
  assert len(re.findall(r"step 2/2", done.stdout)) == 1, "process 0 alone shows the run"
