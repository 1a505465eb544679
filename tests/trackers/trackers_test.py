"""Trackers show what metrics.jsonl has, once each, and nothing that they do can end a run."""

import html.parser
import json
import os
import subprocess
import sys
import threading
import types

import jax.numpy as jnp
import numpy as np
import pytest
from tensorboard.plugin_util import markdown_to_safe_html
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams import metadata as hparams

from simpo_jax import run as loop
from simpo_jax.config import replace_fields
from simpo_jax.errors import UserError
from simpo_jax.settings import Settings, SimPOSettings
from simpo_jax.trackers import service, tensorboard, tracker
from simpo_jax.trackers.rows import generation_entry
from simpo_jax.trackers.tensorboard import EventFiles, _events, code_block
from simpo_jax.trackers.tracker import Tracking
from simpo_jax.train.metrics import pair_values
from simpo_jax.train.step import PairStats
from simpo_jax.workdir.files import samples_folder, write_json
from support import fake_trackers as tracked
from support.folders import ROOT
from support.run_outcome import record
from support.runs_in_process import Lost, go, lose

pytestmark = pytest.mark.usefixtures("one_executable")

PATIENT = {"tracking.flush_seconds": 600.0}  # a machine may be slow
OFFLINE = {"tracking.wandb": True, "tracking.wandb_mode": "offline"}
CORPUS = (
  "<script>alert(1)</script>",
  "<img src=http://evil/p.png onerror=alert(1)>",
  "![p](http://evil/p.png) [a](javascript:alert(1)) <http://evil>",
  "```\n<b>x</b>\n```\n~~~\ny\n~~~",
  "</code></pre><h1>big</h1>",
  "<!-- never closed",
  "<?php never <![CDATA[ closed",
  "# heading\n\ntitle\n=====\n\n- item\n\n1. item",
  "| a | b |\n|---|---|\n| 1 | 2 |",
  "[x]: http://evil\n\n[x]",
  "&lt;b&gt; &amp; &#60;",
  "\x02wzxhzdk:0\x03 \x00 \x1b[31m",
  "    indented\n\n\n<div>\n\n*a* _b_ `c` \\*d*",
  "one\rtwo\x0bthree\x85four\u2028five",
  "word " * 300 + "x" * 1000,
  "<plaintext><textarea><style>*{}",
)


@pytest.fixture(autouse=True, scope="module")
def quiet_and_elsewhere(tmp_path_factory):
  """No tracker calls home, and what it leaves in the current folder is not in the checkout."""
  with pytest.MonkeyPatch.context() as patch:
    patch.chdir(tmp_path_factory.mktemp("cwd"))
    for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK"):
      patch.setenv(name, "true")
    patch.setenv("WANDB_ERROR_REPORTING", "false")
    yield


def config(**changes):
  fields = {name.replace("__", "."): value for name, value in changes.items()}
  return replace_fields(Settings(), {**PATIENT, **fields})


def row(step, mode="train"):
  return {"step": step, "mode": mode, "loss": 1 / step, "data_skipped": {"too long": step}}


def summary(step, text="Once."):
  sample = {"prompt_index": 3, "sample_index": 0, "prompt": "Tell.", "generated_text": text}
  sample |= {"generated_token_ids": [1], "generated_token_count": 4}
  sample |= {"finish_reason": "stop", "logprob_sum": -1.25}
  results = [{"generated_token_count": n} for n in (4, 9, 9)]
  return {"step": step, "requests": 3, "samples": [sample], "results": results}


def play(folder, rows, said=None, **changes):
  """What a run does with its rows; returns the state of the trackers."""
  folder.mkdir(exist_ok=True)
  with Tracking(config(**changes), folder, (said if said is not None else []).append) as track:
    for r in rows:
      if r["mode"] == "generate":
        values = summary(r["step"])
        samples_folder(folder, r["step"]).mkdir(parents=True, exist_ok=True)
        write_json(samples_folder(folder, r["step"]) / "summary.json", values)
        track(*generation_entry(values))
      else:
        track(r, {"pairs/margins": np.arange(4) * 0.5})
    track.end("done")
  return track.state


def lines(folder):
  return (folder / "metrics.jsonl").read_text().splitlines()


def shows_all(folder):
  """TensorBoard shows each number of metrics.jsonl, once, in its order, and no other."""
  expected = {
    tag: [(step, np.float32(value)) for step, value in points]
    for tag, points in tracked.metrics(folder).items()
  }
  return tracked.scalars(tracked.tensorboard(folder)) == expected


# --- a real run ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shown(tmp_path_factory, one_executable):  # noqa: F811
  """A run with all trackers."""
  folder = tmp_path_factory.mktemp("shown") / "run"
  services = {
    **OFFLINE,
    "tracking.mlflow": True,
    "tracking.mlflow_uri": f"sqlite:///{folder.parent}/mlflow.db",
  }
  go(folder, **PATIENT, **services)
  return folder


def test_all_rows_and_no_problem(shown):
  rows = len(lines(shown))
  state = {"rows": rows, "dropped": 0, "problem": None}
  assert record(shown)["tracking"] == dict.fromkeys(("tensorboard", "wandb", "mlflow"), state)
  assert record(shown)["executables"] == 1


def test_tensorboard_has_the_numbers_of_metrics_jsonl(shown):
  assert shows_all(shown)
  assert {"train/rewards/margins", "eval/loss", "generate/finish_reasons.length"} <= set(
    tracked.metrics(shown)
  )


def test_histograms_are_of_every_pair_and_answer(shown):
  view, numbers = tracked.tensorboard(shown), tracked.metrics(shown)
  means = {
    "pairs/margins": "rewards/margins",
    "pairs/chosen_tokens": "length/chosen",
    "pairs/rejected_tokens": "length/rejected",
  }
  counts = {"train": dict.fromkeys(range(1, 6), 2), "eval": dict(numbers["eval/pairs"])}
  expected = {
    f"{group}/{name}": [
      (step, counts[group][step], mean) for step, mean in numbers[f"{group}/{of}"]
    ]
    for group in counts
    for name, of in means.items()
  }
  expected["generate/answers/tokens"] = [(step, 4, 8.0) for step in (2, 4)]
  assert set(view.Tags()["histograms"]) == set(expected)
  for tag, points in expected.items():
    events = view.Histograms(tag)
    assert [(e.step, e.histogram_value.num) for e in events] == [p[:2] for p in points]
    for event, (_, count, mean) in zip(events, points, strict=True):
      h = event.histogram_value
      assert sum(h.bucket) == count
      assert h.sum / h.num == pytest.approx(mean, rel=1e-6)
      assert h.min <= mean <= h.max <= h.bucket_limit[-1] * (1 + 1e-6) + 1e-6


def test_absent_pairs_are_in_no_histogram():
  present = np.asarray([True, False, True], np.bool_)
  zeros, numbers = np.zeros(3), np.asarray([-1.0, 0.0, -3.0])
  arrays = (numbers, 2 * numbers, numbers, zeros, zeros, present, ~present)
  stats = PairStats(*map(jnp.asarray, arrays))
  values = pair_values(stats, SimPOSettings(beta=2.0))
  assert {name: v.tolist() for name, v in values.items()} == {
    "pairs/margins": [2.0, 6.0],
    "pairs/chosen_tokens": [-1.0, -3.0],
    "pairs/rejected_tokens": [0.0, 0.0],
  }


def test_samples_and_config_are_shown_as_text(shown):
  view = tracked.tensorboard(shown)
  samples = {
    f"generate/prompt_{i:04d}": f"Tell me a short story about the number {i}." for i in range(3)
  }
  assert {t for t in view.Tags()["tensors"] if t[0] != "_"} == {*samples, "config"}
  for tag, prompt in samples.items():
    shown_texts = tracked.texts(view, tag)
    assert [step for step, _ in shown_texts] == [2, 4]
    for step, text in shown_texts:
      assert f"**Prompt**\n\n    {prompt}\n\n**Answer**: 8 tokens, length, log-probability" in text
      [sample] = [
        s
        for s in json.loads((shown / f"samples/step_{step:06d}/summary.json").read_text())[
          "samples"
        ]
        if s["prompt"] == prompt
      ]
      assert f"log-probability {sample['logprob_sum']:.2f}\n" in text
  [(_, text)] = tracked.texts(view, "config")
  assert json.loads(text) == json.loads((shown / "config.json").read_text())


def test_hyperparameters(shown):
  data = {
    tag: metadata.plugin_data.content
    for tag, metadata in tracked.tensorboard(shown).summary_metadata.items()
  }
  start = hparams.parse_session_start_info_plugin_data(data["_hparams_/session_start_info"])
  assert start.hparams["train.learning_rate"].number_value == 1e-3
  assert start.hparams["generate.at_steps"].string_value == "[2, 4]"
  experiment = hparams.parse_experiment_plugin_data(data["_hparams_/experiment"])
  assert {info.name for info in experiment.hparam_infos} == set(start.hparams)
  assert {m.name.tag for m in experiment.metric_infos} <= set(tracked.metrics(shown))
  end = hparams.parse_session_end_info_plugin_data(data["_hparams_/session_end_info"])
  # Protobuf makes the names when the module is imported.
  assert end.status == api_pb2.STATUS_SUCCESS  # pyright: ignore[reportAttributeAccessIssue]


def test_wandb_offline(shown):
  [records] = tracked.wandb_records(shown)
  [run] = [r.run for r in records if r.HasField("run")]
  assert (run.project, run.display_name) == ("simpo_jax", "run")
  settings = {u.key: json.loads(u.value_json) for u in run.config.update if u.key != "_wandb"}
  assert settings == json.loads((shown / "config.json").read_text())
  history, found = tracked.wandb_history(records), {}
  for h in history:
    for tag, value in h.items():
      if tag in tracked.metrics(shown):
        found.setdefault(tag, []).append((h["step"], value))
  assert found == tracked.metrics(shown)
  assert [h["_step"] for h in history] == list(range(1, len(lines(shown)) + 1))
  assert sum(history[0]["train/pairs/margins.values"]) == 2
  tables = shown.glob("wandb/offline-run-*/files/media/table/generate/samples_*.json")
  columns = [json.loads(t.read_text()) for t in tables]
  assert sorted(row[0] for table in columns for row in table["data"]) == [2] * 3 + [4] * 3
  assert columns[0]["columns"][:2] == ["step", "prompt_index"]
  assert [r.exit.exit_code for r in records if r.HasField("exit")] == [0]


def test_mlflow_in_a_local_database(shown):
  database = shown.parent / "mlflow.db"
  found = {}
  for key, step, value in tracked.mlflow_rows(
    database, "select key, step, value from metrics order by step"
  ):
    found.setdefault(key, []).append((step, value))
  assert found == tracked.metrics(shown)
  assert tracked.mlflow_rows(database, "select name, status from runs") == [("run", "FINISHED")]
  params = dict(tracked.mlflow_rows(database, "select key, value from params"))
  assert params["train.learning_rate"] == "0.001" and params["name"] == "default"
  [(place,)] = tracked.mlflow_rows(database, "select artifact_uri from runs")
  for step in (2, 4):
    samples = json.load(open(f"{place.removeprefix('file://')}/samples/step_{step:06d}.json"))
    assert [s["prompt_index"] for s in samples] == [0, 1, 2]


# --- runs that go on -----------------------------------------------------------------------


def test_a_lost_run_is_shown_without_gap_or_double(tmp_path, before_launch):  # noqa: F811
  """Step 2's generation and evaluation and step 3 are made again."""
  before_launch(5, lose)
  with pytest.raises(Lost):
    go(tmp_path / "run", **PATIENT)
  before = tracked.tensorboard(tmp_path / "run")
  assert max(e.step for e in before.Scalars("train/loss")) == 3
  go(tmp_path / "run", **PATIENT)
  assert shows_all(tmp_path / "run")
  texts = tracked.texts(tracked.tensorboard(tmp_path / "run"), "generate/prompt_0000")
  assert [step for step, _ in texts] == [2, 4]


BAD = {"step": 5, "mode": "bad_step", "pairs": ["a"], "bad_steps": 1}
ROWS = [row(1), row(2), row(2, "generate"), row(3), row(4), row(4, "evaluate"), BAD, row(6)]


def event_file(folder):
  [path] = (folder / "tensorboard").iterdir()
  return path


def torn(folder):
  os.truncate(event_file(folder), event_file(folder).stat().st_size - 5)


def zeros(folder):
  """As a file system may leave it after a loss of power."""
  with open(event_file(folder), "ab") as f:
    f.write(bytes(64))


def half_lost(folder):
  """All but the config and the first row."""
  os.truncate(event_file(folder), event_file(folder).read_bytes().index(b"generate/") - 100)


def all_lost(folder):
  event_file(folder).unlink()


@pytest.mark.parametrize("damage", (None, torn, zeros, half_lost, all_lost))
@pytest.mark.parametrize("kept", (3, 5))
def test_event_files_follow_metrics_jsonl(tmp_path, damage, kept):
  """Rows that were cut off leave them; rows that had not been written come first."""
  folder = tmp_path / "run"
  play(folder, ROWS[:6])
  (folder / "metrics.jsonl").write_text("".join(x + "\n" for x in lines(folder)[:kept]))
  if damage:
    damage(folder)
  state = play(folder, ROWS[kept:])
  assert state["tensorboard"] == {"rows": len(ROWS), "dropped": 0, "problem": None}
  assert shows_all(folder)
  view = tracked.tensorboard(folder)
  assert [e.step for e in view.Histograms("generate/answers/tokens")] == [2]
  [(step, text)] = tracked.texts(view, "generate/prompt_0003")
  assert step == 2 and text.endswith("\n\n    Once.")
  assert len(tracked.texts(view, "config")) == 1
  if damage is zeros:
    sizes = [[end for end, _ in _events(p)][-1] for p in sorted((folder / "tensorboard").iterdir())]
    assert sizes == [p.stat().st_size for p in sorted((folder / "tensorboard").iterdir())]


def test_a_clock_that_is_set_back_changes_no_order(tmp_path, monkeypatch):
  play(tmp_path / "run", ROWS[:4])
  monkeypatch.setattr(tensorboard, "time", types.SimpleNamespace(time=lambda: 1e9))
  play(tmp_path / "run", ROWS[4:])
  assert shows_all(tmp_path / "run")


def test_a_tensorboard_that_watches_drops_what_was_cut_off(tmp_path):
  folder = tmp_path / "run"
  play(folder, ROWS)
  view = tracked.tensorboard(folder)
  (folder / "metrics.jsonl").write_text("".join(x + "\n" for x in lines(folder)[:4]))
  play(folder, ROWS[4:] + [row(7)])
  assert [e.step for e in view.Reload().Scalars("train/loss")] == [1, 2, 3, 4, 6, 7]


@pytest.mark.slow
def test_services_go_on_with_their_runs(tmp_path):
  """The first start is killed after row 5, and the second begins again from row 4."""
  folder, database = tmp_path / "run", tmp_path / "mlflow.db"
  options = {"tracking__mlflow": True, "tracking__mlflow_uri": f"sqlite:///{database}"}
  options |= {name.replace(".", "__"): value for name, value in OFFLINE.items()}
  folder.mkdir()
  track = Tracking(config(**options), folder, print)
  for r in ROWS[:5]:
    track(r if r["mode"] != "generate" else {**r, "requests": 3})
  services = [t for t in track._trackers if t.name != "tensorboard"]
  for t in services:
    while t.rows < 5:
      assert t._thread.is_alive(), t.problem
      t._thread.join(0.05)
    assert isinstance(t._writer, service.Service)
    t._writer._requests.close()  # as the end of this process does
    t._writer._process.wait()
  (folder / "metrics.jsonl").write_text("".join(x + "\n" for x in lines(folder)[:4]))
  state = play(folder, ROWS[4:], **options)
  assert {s["problem"] for s in state.values()} == {None}
  first, second = tracked.wandb_records(folder)
  histories = [tracked.wandb_history(records) for records in (first, second)]
  assert [[h["_step"] for h in hs] for hs in histories] == [[1, 2, 3, 4, 5], [6, 7, 8]]
  assert len({r.run.run_id for r in first + second if r.HasField("run")}) == 1
  codes = [[r.exit.exit_code for r in rs if r.HasField("exit")] for rs in (first, second)]
  assert codes == [[1], [0]]
  steps = "select step from metrics where key = 'train/loss' order by step"
  assert [step for (step,) in tracked.mlflow_rows(database, steps)] == [1, 2, 3, 4, 6]
  assert tracked.mlflow_rows(database, "select status from runs") == [("FINISHED",)]


# --- text that nobody vouches for ----------------------------------------------------------


class Tags(html.parser.HTMLParser):
  """All tags with their attributes, and the text between them."""

  def __init__(self, text):
    super().__init__()
    self.tags, self.text = [], ""
    self.feed(text)
    self.close()

  def handle_starttag(self, tag, attributes):
    self.tags.append((tag, *attributes))

  def handle_data(self, data):
    self.text += data


@pytest.mark.parametrize("number", range(len(CORPUS)))
def test_untrusted_text_is_inert_and_whole(number):
  text = CORPUS[number]
  block = code_block(text)
  page = Tags(markdown_to_safe_html(f"**before**\n\n{block}\n\n**after**"))
  assert page.tags == [("p",), ("strong",), ("pre",), ("code",), ("p",), ("strong",)]
  assert (
    "".join(page.text.split()) == "before" + "".join(tracked.unblocked(block).split()) + "after"
  )
  signs = "".join(c if ord(c) >= 32 or c in "\r\n" else chr(0x2400 + ord(c)) for c in text)
  assert tracked.unblocked(block) == "".join(signs.splitlines())
  assert max(map(len, block.split("\n"))) <= 104


def test_text_that_is_no_unicode_is_written(tmp_path):
  folder = tmp_path / "run"
  folder.mkdir()
  with Tracking(config(), folder, print) as track:
    track(*generation_entry(summary(1, "half a \ud83d pair")))
  [(_, text)] = tracked.texts(tracked.tensorboard(folder), "generate/prompt_0003")
  assert text.endswith("    half a ? pair")


# --- trackers that fail ----------------------------------------------------------------------


@pytest.mark.parametrize(
  ("method", "error"),
  (("open", OSError("no room")), ("write", SystemExit(1)), ("close", ValueError("two\nlines"))),
  ids=("open", "write", "close"),
)
def test_a_tracker_that_raises_is_told_once_and_off(tmp_path, monkeypatch, method, error):
  def fail(*_):
    raise error

  monkeypatch.setattr(EventFiles, method, fail)
  said = []
  state = play(tmp_path / "run", ROWS, said)["tensorboard"]
  reason = " ".join(str(error).split())
  assert said == [f"tensorboard is off: {reason}; metrics.jsonl has every row"]
  assert state == {"rows": 8 if method == "close" else 0, "dropped": 0, "problem": reason}
  assert len(lines(tmp_path / "run")) == len(ROWS)


@pytest.mark.parametrize("ill", ("raises", "hangs"))
def test_a_run_goes_on_without_its_tracker(tmp_path, monkeypatch, capfd, shown, ill):
  freed = threading.Event()

  def write(self, entry):
    if entry.number == 3:
      freed.wait()
      raise OSError("No space left on device")

  monkeypatch.setattr(EventFiles, "write", write)
  if ill == "raises":
    freed.set()
  _, folder = go(tmp_path / "run", tracking__flush_seconds=0.5 if ill == "hangs" else 600.0)
  freed.set()
  assert record(folder)["status"] == "done"
  assert len(lines(folder)) == len(lines(shown))
  words = {"raises": "No space left on device", "hangs": "did not finish within"}[ill]
  assert words in record(folder)["tracking"]["tensorboard"]["problem"]
  out, err = capfd.readouterr()
  assert " ".join(out.split()).count(f"tensorboard is off: {words}") == 1
  assert "Traceback" not in err


def test_the_queue_is_bounded_and_never_waits(tmp_path, monkeypatch):
  taken, freed = threading.Event(), threading.Event()
  write = EventFiles.write

  def slow(self, entry):
    taken.set()
    freed.wait()
    write(self, entry)

  monkeypatch.setattr(EventFiles, "write", slow)
  monkeypatch.setattr(tracker, "_MAX_QUEUED", 10)
  folder, said = tmp_path / "run", []
  folder.mkdir()
  with Tracking(config(), folder, said.append) as track:
    track(row(1))
    taken.wait()
    for step in range(2, 100):
      track(row(step))
    assert track.state["tensorboard"]["dropped"] == 98 - 10
    freed.set()
    track.end("done")
  assert len(lines(folder)) == 99
  steps = [e.step for e in tracked.tensorboard(folder).Scalars("train/loss")]
  assert steps == list(range(1, 12))
  assert len(said) == 1 and "slower than the run" in said[0]


def test_the_end_waits_for_a_tracker_once(tmp_path, monkeypatch):
  freed = threading.Event()
  monkeypatch.setattr(EventFiles, "write", lambda *_: freed.wait(30))
  said = []
  with Tracking(config(tracking__flush_seconds=0.1), tmp_path, said.append) as track:
    track(row(1))
    track.end("done")
    track._seconds = 60.0
  assert track._trackers[0]._thread.is_alive(), "waited until it was done"
  freed.set()
  assert len(said) == 1


ENDLESS = "import sys, time\nsys.stdin.readline()\ntime.sleep(1000)"
DYING = "import os, sys\nsys.stdin.readline()\nprint('why', file=sys.stderr)\nos._exit(7)"
DEAF = "import time\ntime.sleep(1000)"


@pytest.mark.parametrize(
  ("script", "words"),
  ((ENDLESS, "no answer for 1 s"), (DEAF, "no answer for 1 s"), (DYING, "ended with code 7; see")),
  ids=("endless", "deaf", "dying"),
)
def test_a_service_that_hangs_or_dies(tmp_path, monkeypatch, script, words):
  worker, said, folder = tmp_path / "worker.py", [], tmp_path / "run"
  worker.write_text(script)
  monkeypatch.setattr(service, "_WORKER", worker)
  monkeypatch.setattr(service, "_REPLY_SECONDS", 1)
  changes = {name.replace(".", "__"): value for name, value in OFFLINE.items()}
  state = play(folder, ROWS, said, **changes)
  assert len(said) == 1 and words in said[0]
  assert words in state["wandb"]["problem"] and state["tensorboard"]["problem"] is None
  assert shows_all(folder)
  if script is DYING:
    assert (folder / "tracking" / "wandb.log").read_text() == "why\n"


def test_a_server_that_is_not_there_does_not_hold_the_end(tmp_path):
  said = []
  changes = {"tracking__mlflow": True, "tracking__mlflow_uri": "http://127.0.0.1:9"}
  track = Tracking(
    config(**changes, tracking__tensorboard=False, tracking__flush_seconds=0.1),
    tmp_path,
    said.append,
  )
  with track:
    track(row(1))
  [service_track] = track._trackers
  service_track._thread.join(60)
  assert not service_track._thread.is_alive()
  assert isinstance(service_track._writer, service.Service)
  assert service_track._writer._process.poll() == -9
  assert len(said) == 1 and said[0].startswith("mlflow is off: did not finish within")


def test_what_is_not_installed_is_refused_before_compiling(tmp_path, monkeypatch):
  (tmp_path / "wandb").mkdir()  # such a folder in the current one is no package
  find = tracker.importlib.util.find_spec
  monkeypatch.setattr(
    tracker.importlib.util,
    "find_spec",
    lambda name: None if name == "mlflow" else find(name),
  )
  monkeypatch.setattr(loop, "lower_program", lambda _: pytest.fail("too late"))
  with pytest.raises(
    UserError, match=r"mlflow is not installed: pip install 'simpo_jax\[mlflow\]'"
  ):
    go(tmp_path / "run", tracking__mlflow=True)


# --- what it costs ---------------------------------------------------------------------------


def test_other_processes_track_nothing(tmp_path):
  with Tracking(config(), tmp_path, pytest.fail, writes=False) as track:
    track(row(1))
  assert track.state == {} and not list(tmp_path.iterdir())


def test_neither_tensorflow_nor_torch_is_imported(tmp_path):
  """TensorFlow is found there, and breaks whoever imports it."""
  (tmp_path / "tensorflow.py").write_text("raise SystemExit('imported')")
  code = """
import sys
import simpo_jax.run
heavy = {"tensorboard", "wandb", "mlflow"} & set(sys.modules)
assert not heavy, heavy
import pathlib
from simpo_jax.trackers.rows import Entry
from simpo_jax.trackers.tensorboard import EventFiles
files = EventFiles(pathlib.Path(sys.argv[1]), {"seed": 0}, 0)
files.open()
row = {"step": 1, "mode": "train", "loss": 1.0}
files.write(Entry(1, row, {"pairs/margins": [1.0, 2.0]}))
files.close("done")
heavy = {"tensorflow", "torch", "wandb", "mlflow"} & set(sys.modules)
assert not heavy, heavy
"""
  path = os.pathsep.join([str(tmp_path), str(ROOT)])
  done = subprocess.run(
    [sys.executable, "-c", code, str(tmp_path)],
    env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
