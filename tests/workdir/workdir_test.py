"""What a run leaves behind: the workdir's files and fields, from one real run on CPU."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from simpo_jax.errors import UserError
from simpo_jax.program.ledger import Mode
from simpo_jax.runtime.launch_schedule import evaluates, generates, launches_after
from simpo_jax.settings import EvaluateSettings, GenerateSettings, Settings, TrainSettings
from simpo_jax.tokenizer.byte_vocab import decode
from simpo_jax.workdir.files import fresh_name, make_workdir, write_json, write_rows
from support.folders import ROOT
from support.modules import load_module

pytestmark = pytest.mark.program

M11 = f"--config={ROOT}/configs/m11.py"
SMALL = {"train.steps": 3, "generate.count": 5, "generate.max_new_tokens": 8}
LAUNCHES = ["train", "train", "generate", "train", "evaluate", "evaluate"]  # 13 held out, 8 a batch
PAIR_METRICS = [
  "rewards/chosen",
  "rewards/rejected",
  "rewards/margins",
  "rewards/accuracies",
  "rewards/accuracies_gamma",
  "logps/chosen",
  "logps/rejected",
  "length/chosen",
  "length/rejected",
]
TRAIN_ROW = [
  "step",
  "mode",
  "loss",
  "nll_loss",
  *PAIR_METRICS,
  "grad_norm",
  "learning_rate",
  "tokens_per_second",
  "step_seconds",
  "data_wait_seconds",
  "rows",
  "row_fill",
]
EVALUATE_ROW = ["step", "mode", "loss", "nll_loss", *PAIR_METRICS, "pairs", "step_seconds"]
SAMPLE_ROW = [
  "step",
  "process_index",
  "process_count",
  "prompt_index",
  "sample_index",
  "prompt",
  "generated_text",
  "generated_token_ids",
  "generated_token_count",
  "finish_reason",
  "logprob_sum",
]


def start(folder, *args):
  """The real command line, in a process of its own, from `folder`."""
  env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
  env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), env.get("PYTHONPATH")]))
  return subprocess.Popen(
    [sys.executable, "-m", "simpo_jax.main", M11, *args],
    cwd=folder,
    text=True,
    env={**env, "JAX_PLATFORMS": "cpu"},
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
  )


def load(path) -> Any:
  """Strict JSON: NaN and Infinity, which other readers refuse, are an error."""

  def refuse(name):
    raise AssertionError(f"{path} holds {name}")

  text = path.read_text()
  if path.suffix == ".jsonl":
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]
  return json.loads(text, parse_constant=refuse)


def floats(value):
  if isinstance(value, dict):
    value = list(value.values())
  if isinstance(value, list):
    return [f for v in value for f in floats(v)]
  return [value] if isinstance(value, float) else []


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
  """(workdir, stdout) of a run of 3 steps that was given no --workdir."""
  folder = tmp_path_factory.mktemp("cwd")
  process = start(folder, *(f"--config.{name}={value}" for name, value in SMALL.items()))
  out, err = process.communicate(timeout=300)
  assert process.returncode == 0, err
  [workdir] = (folder / "runs").iterdir()
  return workdir, out


@pytest.fixture
def workdir(finished):
  return finished[0]


def test_default_folder_is_dated(workdir):
  assert re.fullmatch(r"\d{8}-\d{6}-m11", workdir.name)


def test_files(workdir):
  files = {str(p.relative_to(workdir)) for p in workdir.rglob("*") if p.is_file()}
  samples = {"samples/step_000002/host_0000_of_0001.jsonl", "samples/step_000002/summary.json"}
  assert {"config.json", "run.json", "metrics.jsonl"} | samples <= files
  assert {f for f in files if f.startswith("samples/")} == samples
  assert not [f for f in files if f.endswith((".tmp", ".writable"))]


def test_config_is_the_resolved_one(workdir):
  config = load_module(ROOT / "configs" / "m11.py").get_config()
  for name, value in SMALL.items():
    group, field = name.split(".")
    config[group][field] = value
  assert load(workdir / "config.json") == json.loads(config.to_json())


def test_run_record(workdir):
  run = load(workdir / "run.json")
  assert (run["status"], run["error"]) == ("done", None)
  assert (run["compiles"], run["executables"]) == (1, 1)
  assert run["launches"] == LAUNCHES
  assert re.fullmatch(r"[0-9a-f]{16}", run["program"])
  assert run["processes"] == 1
  assert run["devices"]["count"] == 1 and run["devices"]["kind"]
  assert math.prod(run["devices"]["mesh"].values()) == 1
  assert set(run["versions"]) >= {"python", "jax", "jaxlib", "numpy"}
  assert run["versions"]["python"] == sys.version.split()[0]
  assert run["pairs"] == {"train": 243, "held_out": 13}
  data = run["data"]["train"]
  assert (data["total"], data["kept"], data["skipped"]) == (256, 256, {})
  peaks = run["peak_bytes"]
  assert set(peaks) == {"program", "train", "generate", "evaluate", "abort"}
  assert 0 < run["memory"]["aliased"] <= peaks["abort"] < peaks["evaluate"] < peaks["train"]
  assert max(peaks["train"], peaks["generate"]) <= peaks["program"]
  assert run["peak_rss_bytes"] > 10**7


def test_timings(workdir):
  timings = load(workdir / "run.json")["timings"]
  assert [launch["mode"] for launch in timings["launches"]] == LAUNCHES
  seconds = [launch["seconds"] for launch in timings["launches"]]
  assert timings["compile"] > 0 and min(seconds) > 0
  assert timings["total"] >= timings["compile"] + sum(seconds) - 0.1


def test_metrics(workdir):
  rows = load(workdir / "metrics.jsonl")
  assert [(r["mode"], r["step"]) for r in rows] == [
    ("train", 1),
    ("train", 2),
    ("generate", 2),
    ("train", 3),
    ("evaluate", 3),
  ]
  for row in rows:
    if row["mode"] != "generate":
      assert list(row) == (TRAIN_ROW if row["mode"] == "train" else EVALUATE_ROW)
      assert row["rewards/margins"] == pytest.approx(
        row["rewards/chosen"] - row["rewards/rejected"], abs=1e-5
      )
      assert row["rewards/chosen"] == pytest.approx(2.0 * row["logps/chosen"])  # beta
      assert 0 <= row["rewards/accuracies_gamma"] <= row["rewards/accuracies"] <= 1
  assert rows[-1]["pairs"] == 13
  assert min(r["grad_norm"] for r in rows if r["mode"] == "train") > 0


def test_every_number_is_finite(workdir):
  numbers = [f for p in workdir.rglob("*.json*") for f in floats(load(p))]
  assert len(numbers) > 50
  assert all(map(math.isfinite, numbers))


def test_samples(workdir):
  rows = load(workdir / "samples/step_000002/host_0000_of_0001.jsonl")
  assert [r["prompt_index"] for r in rows] == [0, 1, 2, 3, 4]
  for i, row in enumerate(rows):
    assert list(row) == SAMPLE_ROW
    assert (row["step"], row["process_index"], row["process_count"]) == (2, 0, 1)
    assert row["sample_index"] == 0
    assert row["prompt"] == f"Tell me a short story about the number {i}."
    assert row["generated_text"] == decode(row["generated_token_ids"])
    assert len(row["generated_token_ids"]) == row["generated_token_count"] == 8
    assert row["finish_reason"] == "length"  # m11 ignores end tokens
    assert row["logprob_sum"] < 0


def test_summary_agrees_with_the_samples(workdir):
  folder = workdir / "samples/step_000002"
  rows, summary = load(folder / "host_0000_of_0001.jsonl"), load(folder / "summary.json")
  shared = (
    "prompt_index",
    "sample_index",
    "process_index",
    "generated_token_count",
    "finish_reason",
  )
  assert summary["results"] == [{name: r[name] for name in shared} for r in rows]
  assert (summary["step"], summary["requests"], summary["generated_tokens"]) == (2, 5, 40)
  assert summary["finish_reasons"] == {"length": 5}
  assert summary["mean_logprob_per_token"] == pytest.approx(
    sum(r["logprob_sum"] for r in rows) / 40, abs=1e-5
  )


def test_terminal_output(finished):
  workdir, out = finished
  for part in (
    "243 training pairs, 13 held out",
    "step 3/3",
    "generated 40 tokens",
    "held out (13 pairs)",
    "done: 1 compile, 1 executable, 6 launches",
    workdir.name,
  ):
    assert part in out
  assert "\x1b" not in out, "no colors in a file"


def test_second_run_is_refused(workdir):
  before = {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}
  process = start(workdir.parent, f"--workdir={workdir}")
  _, err = process.communicate(timeout=120)
  assert process.returncode == 2
  assert "holds an earlier run" in err
  assert before == {p: p.read_bytes() for p in workdir.rglob("*") if p.is_file()}


def test_sigterm_ends_the_run_after_the_launch_in_progress(tmp_path):
  workdir = tmp_path / "deep" / "run"
  process = start(
    tmp_path, f"--workdir={workdir}", "--config.train.steps=100000", "--config.generate.at_steps=()"
  )
  metrics = workdir / "metrics.jsonl"
  deadline = time.monotonic() + 120
  while not metrics.is_file() or metrics.read_text().count("\n") < 3:
    assert process.poll() is None and time.monotonic() < deadline, process.communicate()[1]
    time.sleep(0.05)
  assert load(workdir / "run.json")["status"] == "running"
  before = len(load(metrics))
  process.send_signal(signal.SIGTERM)
  out, err = process.communicate(timeout=60)
  assert process.returncode == 75, err
  rows, run = load(metrics), load(workdir / "run.json")
  assert before <= len(rows) <= before + 10, "the run goes on long after the signal"
  assert [r["step"] for r in rows] == list(range(1, len(rows) + 1))
  assert (run["status"], run["error"]) == ("stopped", None)
  assert run["launches"] == [*["train"] * len(rows), "stop"]
  assert run["compiles"] == 1
  assert f"stop requested: ending after step {len(rows)}" in out
  assert f"start the same command again with --workdir={workdir} to resume" in out
  assert [p.name for p in (workdir / "checkpoints").iterdir()] == [f"step_{len(rows):06d}"]
  assert not list(workdir.rglob("*.tmp"))


def test_default_folders_do_not_collide(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  folders = [make_workdir(fresh_name("m11"), {}) for _ in range(3)]
  assert len(set(folders)) == 3
  assert all(f.is_dir() and not list(f.iterdir()) for f in folders)


def test_an_empty_folder_is_accepted_and_a_file_is_not(tmp_path):
  assert make_workdir(str(tmp_path), {}) == tmp_path
  (tmp_path / "file").write_text("")
  for path in ("file", "file/run"):
    with pytest.raises(UserError, match="folder"):
      make_workdir(str(tmp_path / path), {})


def test_what_an_unfinished_attempt_left_is_set_aside(tmp_path):
  folder, config = tmp_path / "run", {"name": "mine", "train": {"steps": (1, 2)}}

  def attempt(status, config=config):
    """In a process of its own, whose end unlocks the folder."""
    code = (
      "import json, sys; from simpo_jax.workdir.files import make_workdir, write_json\n"
      "folder = make_workdir(sys.argv[1], json.loads(sys.argv[2]))\n"
      "write_json(folder / 'config.json', json.loads(sys.argv[2]))\n"
      "write_json(folder / 'run.json', {'status': sys.argv[3]})\n"
    )
    done = subprocess.run(
      [sys.executable, "-c", code, str(folder), json.dumps(config), status],
      text=True,
      capture_output=True,
    )
    return done.stderr.splitlines()[-1] if done.returncode else None

  assert attempt("running") is None
  assert attempt("failed") is None
  assert attempt("done") is None
  kept = {
    p.name: json.loads((p / "run.json").read_text())["status"] for p in folder.glob("attempts/*")
  }
  assert kept == {"0001": "running", "0002": "failed"}
  assert (folder / "attempts" / "0001" / "config.json").exists()
  assert "an earlier run that is finished" in (attempt("running") or "")
  (folder / "run.json").write_text('{"status": "failed"}')
  assert "an earlier run of another config" in (attempt("running", {"name": "other"}) or "")
  assert sorted(p.name for p in folder.iterdir()) == ["attempts", "config.json", "run.json"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
  path = tmp_path / "run.json"
  write_json(path, {"step": 1})
  with pytest.raises(ValueError):
    write_json(path, {"step": float("nan")})
  assert load(path) == {"step": 1}

  def rows():
    yield {"a": 1}
    raise RuntimeError

  with pytest.raises(RuntimeError):
    write_rows(tmp_path / "rows.jsonl", rows())
  assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


# --- the schedule ------------------------------------------------------------------------


def schedule(steps=10, at_steps=(), every=0, evaluate_every=0, at_end=False, at_start=()):
  """{step: modes} of the steps after which something is launched; 0: before the first."""
  c = Settings(
    train=TrainSettings(steps=steps),
    generate=GenerateSettings(at_steps=at_steps, every=every, at_start="generate" in at_start),
    evaluate=EvaluateSettings(every=evaluate_every, at_end=at_end, at_start="evaluate" in at_start),
  )
  all_steps = {step: launches_after(step, c) for step in range(steps + 1)}
  generating = [step for step, modes in all_steps.items() if Mode.GENERATE in modes]
  assert generates(c) == bool(generating)
  assert evaluates(c) == any(Mode.EVALUATE in modes for modes in all_steps.values())
  return {step: modes for step, modes in all_steps.items() if modes}


def test_never():
  assert schedule() == {}


def test_every():
  assert schedule(every=4) == {4: [Mode.GENERATE], 8: [Mode.GENERATE]}
  assert schedule(every=10) == {10: [Mode.GENERATE]}
  assert schedule(every=11) == {}


def test_at_steps_wins_over_every():
  assert schedule(at_steps=(2,), every=4) == {2: [Mode.GENERATE]}


def test_at_steps_in_any_order_and_once_each():
  assert schedule(at_steps=(10, 1, 1)) == {1: [Mode.GENERATE], 10: [Mode.GENERATE]}


def test_before_the_first_step():
  assert schedule(at_start=("generate",)) == {0: [Mode.GENERATE]}
  assert schedule(at_start=("evaluate",)) == {0: [Mode.EVALUATE]}
  both = {0: [Mode.GENERATE, Mode.EVALUATE], 10: [Mode.GENERATE]}
  assert schedule(at_start=("evaluate", "generate"), every=10) == both


def test_evaluation_at_the_end():
  assert schedule(at_end=True) == {10: [Mode.EVALUATE]}
  assert schedule(steps=1, at_end=True) == {1: [Mode.EVALUATE]}


def test_evaluation_every_and_at_the_end_is_not_done_twice():
  assert schedule(evaluate_every=5, at_end=True) == {5: [Mode.EVALUATE], 10: [Mode.EVALUATE]}
  assert schedule(evaluate_every=4) == {4: [Mode.EVALUATE], 8: [Mode.EVALUATE]}


def test_generation_comes_before_evaluation():
  assert schedule(at_steps=(10,), at_end=True) == {10: [Mode.GENERATE, Mode.EVALUATE]}


@pytest.mark.parametrize("text", ['{"model_type": "llama"}', "no JSON", "3"])
def test_a_config_that_no_run_has_written_stays(tmp_path, text):
  (tmp_path / "config.json").write_text(text)
  with pytest.raises(UserError, match="config.json that no run has written; choose another"):
    make_workdir(str(tmp_path), {"simpo": {}})
  assert (tmp_path / "config.json").read_text() == text


def test_a_start_that_was_killed_after_its_config_is_begun_again(tmp_path):
  (tmp_path / "config.json").write_text('{"simpo": {}}')
  assert make_workdir(str(tmp_path), {"simpo": {}}) == tmp_path
