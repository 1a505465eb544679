"""Hosts whose data drifts apart: told before the launch that would train on it, nothing changed."""

import json
import re
import subprocess
import sys

import pytest

from support.folders import TESTS
from support.hf_models import save_hf_folder
from support.hosts import TINY, flags, run_group
from support.tiers import sweep

pytestmark = pytest.mark.hosts

DRILL = str(TESTS / "support" / "host_drills.py")
SOON = 30  # seconds in which every process ends
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A folder of prepared datasets, with one called `mine`."""
  folder = tmp_path_factory.mktemp("prepared")
  rows = [{"prompt": f"Say {i}.", "chosen": f"{i}!" * 4, "rejected": "No."} for i in range(40)]
  (folder / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  command = ["--source=mine.jsonl", "--out=.", "--workers=1", "--eval_fraction=0.1"]
  subprocess.run([sys.executable, "-m", "simpo_jax.prepare", *command], cwd=folder, check=True)
  return folder


def _settings(prepared, **more):
  data = {"data.train": "tfds:mine", "data.dir": prepared, "train.steps": 3}
  return {**TINY, **data, "generate.at_steps": "()", "data.lookahead": 4, **more}


def _drill(folder, name, settings, processes):
  """A run of which the last host does the drill."""
  line = flags(folder / "run", settings)
  plain = [["-m", "simpo_jax.main", *line]] * (processes - 1)
  return run_group(folder, [*plain, [DRILL, name, *line]])


def _check_ended(folder, ends, launch):
  """Every process has one error, soon after the last host came to that launch."""
  assert [end.code for end in ends] == [2] * len(ends), ends[0].err[-3000:]
  at, event = (folder / "event").read_text().split(maxsplit=1)
  assert event == f"launch {launch}"
  assert max(end.at for end in ends) - float(at) < SOON
  errors = [re.findall(r"^(?:host \d+: )?error: .*", end.err, re.M) for end in ends]
  assert [len(found) for found in errors] == [1] * len(ends)
  for [error] in errors:
    assert f"the hosts disagree on launch {launch}, nothing was changed" in error
    assert "start all hosts with the same command, files and packages" in error
  status = json.loads((folder / "run" / "run.json").read_text())
  assert status["status"] == "failed" and status["launches"][launch:] == ["abort"]
  return errors[0][0]


@sweep("processes", (2, 4), default=0)
def test_a_template_that_is_a_space_longer_is_named_at_the_start(tmp_path, prepared, processes):
  save_hf_folder(tmp_path / "model", TEMPLATE)
  cwds = [tmp_path / str(host) for host in range(processes)]
  for cwd in cwds:
    cwd.mkdir()
    (cwd / "mine.jinja").write_text(TEMPLATE + (" " if cwd == cwds[-1] else ""))
  settings = {"model.source": tmp_path / "model", "data.chat_template": "mine.jinja"}
  line = flags(tmp_path / "run", _settings(prepared, **settings))
  ends = run_group(tmp_path, [["-m", "simpo_jax.main", *line]] * processes, cwds=cwds)
  assert [end.code for end in ends] == [2] * processes, ends[0].err[-3000:]
  for end in ends:
    last = processes - 1
    assert re.search(
      rf"hosts differ, nothing was run: host {last} \(.+\) has chat template \w+ "
      r"\(host 0: \w+\);",
      end.err,
    )
  assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_another_token_and_going_on_without_it(tmp_path, prepared):
  """The state is that of the step before: the run goes on from it as if nothing had been."""
  settings = _settings(prepared, **{"checkpoint.every": 1})
  ends = _drill(tmp_path, "other_token", settings, 2)
  error = _check_ended(tmp_path, ends, 1)
  assert re.search(
    r"2 of host 1's 2 items differ from host 0's, the first is item 1: pair \S+, with other",
    error,
  )
  commands = [[["-m", "simpo_jax.main", *flags(tmp_path / name, settings)]] * 2 for name in "ab"]
  commands[0] = [["-m", "simpo_jax.main", *flags(tmp_path / "run", settings)]] * 2
  for command in commands:
    assert [end.code for end in run_group(tmp_path, command)] == [0, 0]
  resumed, undisturbed = (_losses(tmp_path / name) for name in ("run", "b"))
  assert resumed == undisturbed and len(resumed) == 3


def _losses(folder):
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  return [(row["step"], row["loss"], row["grad_norm"]) for row in rows if row["mode"] == "train"]


@sweep(
  ("drill", "processes", "launch", "more", "says"),
  [
    ("longer_answers", 2, 1, {}, r"2 of host 1's 2 items .* pair \S+, with other contents"),
    ("longer_answers", 4, 1, {}, r"2 of host 3's 2 items .* pair \S+, with other contents"),
    ("other_shuffle", 2, 0, {}, r"pair (\S+) \(host 0: pair (?!\1)\S+\)"),
    (
      "other_held_out",
      2,
      0,
      {"evaluate.at_start": True, "train.steps": 1},
      r"the first is item 1: pair (\S+) \(host 0: pair (?!\1)\S+\)",
    ),
    (
      "other_requests",
      2,
      1,
      {"generate.at_steps": "(1,)"},
      r"1 of host 1's 5 items .* prompt 2, sample 0, with other contents",
    ),
  ],
)
def test_other_data_aborts_on_all_hosts(tmp_path, prepared, drill, processes, launch, more, says):
  ends = _drill(tmp_path, drill, _settings(prepared, **more), processes)
  error = _check_ended(tmp_path, ends, launch)
  assert re.search(rf"host {processes - 1} wanted data \w+ \(host 0: \w+\); .*{says}", error), error
