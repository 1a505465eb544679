"""Hosts that drift, die or hang: a clear error on every process within seconds, no hang."""

import json
import pathlib
import re

import pytest

from support.folders import TESTS
from support.hosts import TINY, flags, run_group
from support.tiers import sweep

pytestmark = pytest.mark.hosts

DRILL = str(TESTS / "support" / "host_drills.py")
SOON = 30  # seconds in which every process ends, as a preemption asks for


def _drill(folder, name, bad, processes=3, /, **settings):
  """A run of which host `bad` does the drill."""
  line = flags(folder / "run", {**TINY, **settings})
  commands = [
    [DRILL, name, *line] if host == bad else ["-m", "simpo_jax.main", *line]
    for host in range(processes)
  ]
  return run_group(folder, commands)


def _errors(ends):
  """Each process's own error line."""
  lines = [re.findall(r"^(?:host \d+: )?error: .*", end.err, re.M) for end in ends]
  for end, found in zip(ends, lines, strict=True):
    assert len(found) == 1, end.err[-3000:]
  return [found[0] for found in lines]


def _others(ends, bad):
  return [end for host, end in enumerate(ends) if host != bad]


def _event(folder):
  return float((folder / "event").read_text().split()[0])


def _status(folder):
  return json.loads((folder / "run" / "run.json").read_text())


def test_another_config_is_named_with_host_and_field(tmp_path):
  usual = flags(tmp_path / "run", TINY)
  other = [*usual, "--config.train.learning_rate=1e-5"]
  ends = run_group(tmp_path, [["-m", "simpo_jax.main", *f] for f in (usual, usual, other)])
  assert [end.code for end in ends] == [2, 2, 2]
  for error in _errors(ends):
    assert re.search(
      r"host 2 \(.+\) has config\.train\.learning_rate 1e-05 \(host 0: 0\.001\)", error
    )
    assert "start all hosts with the same command" in error
  assert not (tmp_path / "run").exists(), "nothing was begun"


@pytest.mark.slow
def test_another_package_version_is_named(tmp_path):
  ends = _drill(tmp_path, "other_version", 1)
  assert [end.code for end in ends] == [2, 2, 2]
  for error in _errors(ends):
    assert re.search(r"host 1 \(.+\) has version of optax 0\.0\.1 \(host 0: [\d.]+\)", error)


@pytest.mark.slow
def test_data_in_another_order_is_named(tmp_path):
  """The same name and rows, but on host 1 the file lies in another order."""
  rows = [{"prompt": f"Say {i}.", "chosen": f"{i}!", "rejected": "No."} for i in range(8)]
  cwds = []
  for host in range(3):
    cwds.append(tmp_path / str(host))
    cwds[-1].mkdir()
    ordered = rows[::-1] if host == 1 else rows
    text = "".join(json.dumps(row) + "\n" for row in ordered)
    (cwds[-1] / "pairs.jsonl").write_text(text)
  line = flags(tmp_path / "run", {**TINY, "data.train": "pairs.jsonl"})
  ends = run_group(tmp_path, [["-m", "simpo_jax.main", *line]] * 3, cwds=cwds)
  assert [end.code for end in ends] == [2, 2, 2]
  for error in _errors(ends):
    assert re.search(r"host 1 \(.+\) has training pairs \w+ \(host 0: \w+\)", error)


@pytest.mark.slow
def test_a_missing_file_on_one_host_ends_all(tmp_path):
  cwds = [tmp_path / str(host) for host in range(3)]
  for cwd in cwds:
    cwd.mkdir()
    (cwd / "prompts.txt").write_text("Hello\n")
  (cwds[2] / "prompts.txt").unlink()
  line = flags(tmp_path / "run", {**TINY, "generate.prompts": "prompts.txt"})
  ends = run_group(tmp_path, [["-m", "simpo_jax.main", *line]] * 3, cwds=cwds)
  assert [end.code for end in ends] == [2, 2, 2]
  errors = _errors(ends)
  assert "prompts.txt does not exist" in errors[2]
  for error in errors[:2]:
    assert re.search(r"host 2 \(.+\) was lost.*prompts.txt does not exist", error)


@pytest.mark.slow
def test_another_program_text_is_named_before_it_compiles(tmp_path):
  ends = _drill(tmp_path, "other_program", 0, 2)
  assert [end.code for end in ends] == [2, 2]
  for error in _errors(ends):
    assert re.search(r"host 1 \(.+\) has program text \w+ \(host 0: \w+\)", error)
  assert _status(tmp_path)["compiles"] == 0


def test_another_mode_aborts_on_all_hosts_with_the_state_intact(tmp_path):
  ends = _drill(tmp_path, "other_mode", 1)
  assert [end.code for end in ends] == [2, 2, 2]
  for error in _errors(ends):
    assert "the hosts disagree on launch 1, nothing was changed" in error
    assert "host 1 wanted mode generate (host 0: train)" in error
  record = _status(tmp_path)
  assert record["status"] == "failed" and record["launches"] == ["train", "abort"]


@pytest.mark.slow
def test_sigterm_on_one_host_stops_all_after_the_launch_in_progress(tmp_path):
  ends = _drill(tmp_path, "terminated", 1, **{"generate.at_steps": "(1,)"})
  assert [end.code for end in ends] == [75, 75, 75], ends[0].err[-2000:]
  record = _status(tmp_path)
  assert record["status"] == "stopped"
  assert [p.name for p in (tmp_path / "run" / "checkpoints").iterdir()] == ["step_000001.1"]
  assert [host["launches"] for host in record["hosts"]] == [["train", "generate", "stop"]] * 3
  assert max(end.at for end in ends) - _event(tmp_path) < SOON


@sweep("bad", (1, 0), default=0)
def test_sigkill_while_training(tmp_path, bad):
  # Launch 0 is long: many micro-batches of one row.
  settings = {"train.batch_size": 400, "data.embedded_pairs": 500, "data.max_pairs_per_row": 1}
  ends = _drill(tmp_path, "killed_in_launch_0", bad, **settings)
  _check_lost(tmp_path, ends, bad)


@pytest.mark.slow
@pytest.mark.parametrize("bad", (0, 1))
def test_sigkill_while_generating(tmp_path, bad):
  ends = _drill(tmp_path, "killed_in_launch_2", bad, **{"generate.max_new_tokens": 2000})
  _check_lost(tmp_path, ends, bad)
  assert not list(pathlib.Path(tmp_path / "run").glob("samples/**/*.jsonl"))


def _check_lost(folder, ends, bad):
  assert ends[bad].code == -9
  others = _others(ends, bad)
  assert [end.code for end in others] == [75, 75], others[0].err[-2000:]
  for error in _errors(others):
    assert re.search(rf"host {bad} \(.+\) was lost.*: it ended without a word", error)
    assert "start the run again" in error
  assert max(end.at for end in ends) - _event(folder) < SOON
  if bad:
    record = _status(folder)
    assert record["status"] == "failed" and f"host {bad}" in record["error"]


@pytest.mark.slow
def test_a_host_that_sleeps_trips_the_watchdog(tmp_path):
  limits = {"watchdog.least_seconds": 4.0, "watchdog.first_seconds": 4.0}
  ends = _drill(tmp_path, "asleep", 1, **limits)
  assert [end.code for end in ends] == [75, 75, 75]
  errors = _errors(ends)
  bitten = [e for e in errors if "watchdog: launch 2 (generate) took more than 4 s" in e]
  assert bitten
  assert all("watchdog" in error for error in errors), "the sleeper and the others hear of it"
  assert max(end.at for end in ends) - _event(tmp_path) < SOON
  dumps = list((tmp_path / "run").glob("watchdog_host_*.txt"))
  assert dumps
  text = dumps[0].read_text()
  assert "ledger row" in text and "launcher.py" in text and "__call__" in text
