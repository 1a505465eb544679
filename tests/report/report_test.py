"""The report: what is read of workdirs in any state, its signs and floors, and its one file."""

import base64
import hashlib
import html.parser
import json
import math
import pathlib
import re
import subprocess
import sys
import threading
import time
import zlib

import numpy as np
import pytest

from simpo_jax.errors import UserError
from simpo_jax.report import least_times, live
from simpo_jax.report.collect import collect
from simpo_jax.report.evidence import Evidence
from simpo_jax.report.health_checks import check_health
from simpo_jax.report.page import labels, write_report
from simpo_jax.report.samples import kept_parts, part_size, repetition
from simpo_jax.report.timeline import timeline
from simpo_jax.runtime.machine_rates import better, measured_rates
from simpo_jax.settings import ReportSettings
from support.example_run import ATTACKS, START, make
from support.run_outcome import record
from support.runs_in_process import LAUNCHES, go

pytestmark = pytest.mark.usefixtures("one_executable")

MIB = 2**20


class Page(html.parser.HTMLParser):
  """A report as an HTML parser sees it: its elements, and the texts of its scripts by id."""

  def __init__(self, path):
    super().__init__()
    self.elements, self.scripts, self.policy, self._open = [], {}, "", None
    self.feed(pathlib.Path(path).read_text())
    self.close()
    self.data = json.loads(self.scripts["data"])
    self.runs = self.data["runs"]

  def handle_starttag(self, tag, attrs):
    self.elements.append(tag)
    given = dict(attrs)
    if given.get("http-equiv") == "Content-Security-Policy":
      self.policy = given["content"]
    if tag in ("script", "style"):
      self._open = given.get("id", tag)
      self.scripts[self._open] = ""

  def handle_endtag(self, tag):
    self._open = None if tag in ("script", "style") else self._open

  def handle_data(self, data):
    if self._open:
      self.scripts[self._open] += data

  def unpacked(self, name):
    return json.loads(zlib.decompress(base64.b64decode(self.scripts[name])))


def report(*folders, max_bytes=MIB):
  out = folders[0] / "out.html"
  write_report(folders, out, max_bytes)
  return Page(out)


def lines(path):
  return [json.loads(line) for line in path.read_text().splitlines()]


# --- a real run ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory, one_executable):  # noqa: F811
  folder = tmp_path_factory.mktemp("report") / "run"
  go(folder, report__every_seconds=0.05)
  return folder


@pytest.fixture(scope="module")
def page(finished):
  return Page(finished / "report.html")


def test_a_run_leaves_a_report_of_its_end(finished, page):
  [run] = page.runs
  assert run["record"]["status"] == "done"
  assert run["label"] == "run" and run["notes"] == []
  assert record(finished)["executables"] == 1
  assert not list(finished.glob(".report*"))


def test_curves_are_the_metrics(finished, page):
  curves = page.runs[0]["curves"]
  for mode in ("train", "evaluate", "generate"):
    rows = [r for r in lines(finished / "metrics.jsonl") if r["mode"] == mode]
    assert curves[mode]["step"] == [r["step"] for r in rows]
    names = set(curves[mode]) - {"step"}
    assert names == {k for k, v in rows[0].items() if isinstance(v, float | int)} - {
      "step",
      "pairs",
    }
    for name in names:
      assert curves[mode][name] == [r[name] for r in rows]


def test_the_timeline_is_that_of_the_launches(finished, page):
  shown = page.runs[0]["timeline"]
  spans = shown["spans"]
  assert [mode for mode, *_ in spans] == ["compile", *LAUNCHES]
  assert shown["timed"] and spans[0][1] == 0
  # What was compiled for an earlier test took its time then.
  for (_, start, took, *_), (_, after, *_) in zip(spans[1:], spans[2:], strict=False):
    assert start + took <= after + 0.01, "launches do not overlap"
  assert sum(s[2] for s in spans[1:]) <= shown["total"] + 0.1
  steps = [step for mode, _, _, step, _ in spans if mode == "train"]
  assert steps == [1, 2, 3, 4, 5]
  assert [step for mode, _, _, step, _ in spans if mode == "generate"] == [2, 4]
  saves = record(finished)["timings"]["checkpoint_seconds"]
  assert [(s["step"], s["seconds"]) for s in saves] == [(s[2], s[1]) for s in shown["saves"]]
  assert [s[0] for s in shown["saves"]] == sorted(s[0] for s in shown["saves"])


def test_samples_are_the_files(finished, page):
  index = page.unpacked("r0-index")
  assert index["samples"] == 1 and [p[0] for p in index["prompts"]] == [0, 1, 2, 3]
  for number, step in enumerate((2, 4)):
    texts, figures = page.unpacked(f"r0-g{number}-p0"), index["generations"][number]
    for row in lines(finished / f"samples/step_{step:06d}/host_0000_of_0001.jsonl"):
      prompt = row["prompt_index"]
      assert texts[str(prompt)] == {"0": row["generated_text"]}
      assert page.unpacked("r0-q0")[str(prompt)] == row["prompt"]
      assert figures["tokens"][prompt] == row["generated_token_count"]
      reasons = page.runs[0]["samples"]["finish"]
      assert reasons[figures["finish"][prompt]] == row["finish_reason"]
      each = row["logprob_sum"] / row["generated_token_count"]
      assert figures["logprob"][prompt] == pytest.approx(each, abs=1e-3)


def test_a_run_knows_its_floor(page):
  [run] = page.runs
  assert 0 < run["floors"]["train_floor"]
  assert all(g["floor_seconds"] > 0 for g in run["generations"])


# --- workdirs in any state -------------------------------------------------------------------


@pytest.fixture
def made(tmp_path):
  return make(tmp_path / "made")


def test_a_made_run_is_read_without_a_note(made):
  run = collect(made, MIB).run
  assert run["notes"] == [] and run["samples"]["complete"]
  assert [g["step"] for g in run["generations"]] == [2, 5]


@pytest.mark.parametrize("missing", ["run.json", "config.json", "metrics.jsonl"])
def test_a_file_that_is_missing_is_noted(made, missing):
  (made / missing).unlink()
  [run] = report(made).runs
  assert run["notes"] == [f"{missing} is not there (yet)"]
  assert len(run["signs"]) == 12


@pytest.mark.parametrize("kept", ["run.json", "config.json", "metrics.jsonl", "samples"])
def test_any_one_file_is_enough(made, tmp_path, kept):
  alone = tmp_path / "alone"
  alone.mkdir()
  (made / kept).rename(alone / kept)
  [run] = report(alone).runs
  assert len(run["notes"]) == 3 - (kept != "samples")


@pytest.mark.parametrize("name", ["run.json", "config.json"])
@pytest.mark.parametrize("text", ["", '{"status": "run', "[1, 2]", "null"])
def test_a_damaged_file_is_noted(made, name, text):
  (made / name).write_text(text)
  [run] = report(made).runs
  assert len(run["notes"]) == 1 and name in run["notes"][0]


def test_a_line_that_is_being_written_is_left_out_without_a_word(made):
  with open(made / "metrics.jsonl", "a") as f:
    f.write('{"step": 25, "mode": "tra')
  run = collect(made, MIB).run
  assert run["notes"] == [] and run["curves"]["train"]["step"][-1] == 24


def test_damaged_lines_are_counted(made):
  for path, text in ((made / "metrics.jsonl", "{\n[]\n"), (_first(made), '{"prompt_index": 1}\n')):
    path.write_text(text + path.read_text())
  assert collect(made, MIB).run["notes"] == [
    "metrics.jsonl: 2 lines are not JSON objects and are left out",
    "samples of step 2: 1 lines are not samples",
  ]


def _first(folder):
  return folder / "samples/step_000002/host_0000_of_0001.jsonl"


def test_files_of_other_hosts_that_are_missing_are_noted(tmp_path):
  made = make(tmp_path / "four", prompts=8, hosts=4)
  (made / "samples/step_000005/host_0002_of_0004.jsonl").unlink()
  found = collect(made, MIB)
  assert found.run["notes"] == ["samples of step 5: files of 3 of 4 hosts are in this folder"]
  tokens = found.index["generations"][1]["tokens"]
  assert [i for i, n in enumerate(tokens) if n is None] == [4, 5, 12, 13], "two samples of 2 and 6"


def test_samples_that_vanish_meanwhile_are_noted(made):
  _first(made).unlink()
  _first(made).symlink_to("nowhere")
  run = collect(made, MIB).run
  assert run["notes"] == ["samples/step_000002 cannot be read (No such file or directory)"]
  assert [g["step"] for g in run["generations"]] == [5]


def test_values_of_the_wrong_kind_break_nothing(made):
  rows = [
    {"mode": "train", "step": "one", "loss": 1.0},
    {"mode": "train", "step": 30, "loss": "none", "grad_norm": None, "x": [1], "ok": True},
    {"mode": ["train"], "step": 31},
    {"mode": "generate", "step": 2, "mean_tokens": math.inf},
  ]
  with open(made / "metrics.jsonl", "a") as f:
    f.writelines(json.dumps(row) + "\n" for row in rows)
  path = _first(made)
  sample = {**json.loads(path.read_text().splitlines()[0]), "sample_index": 0}
  with open(path, "a") as f:
    for change in (
      {"prompt_index": 6, "generated_token_count": 1e400},
      {"prompt_index": 7, "generated_token_ids": [2**70]},
      {"prompt_index": 8, "generated_text": "\ud800 alone", "finish_reason": "\udfff"},
      {"prompt_index": 9, "logprob_sum": None, "generated_token_ids": None},
    ):
      f.write(json.dumps({**sample, **change}) + "\n")
  page = report(made)
  curves = page.runs[0]["curves"]
  assert curves["train"]["step"][-1] == 30 and curves["train"]["loss"][-1] is None
  assert curves["generate"]["mean_tokens"][0] is None
  assert page.unpacked("r0-g0-p0")["8"]["0"] == "? alone"
  figures = page.unpacked("r0-index")["generations"][0]
  assert page.runs[0]["samples"]["finish"][figures["finish"][12]] == "other"
  assert figures["logprob"][14] is None and figures["repetition"][14] is None


def test_any_field_may_be_missing(made):
  for path in (made / "run.json", made / "config.json"):
    text = path.read_text()
    for name in json.loads(text):
      path.write_text(json.dumps({k: v for k, v in json.loads(text).items() if k != name}))
      assert collect(made, MIB).run["notes"] == []
    path.write_text(text)


def test_a_folder_that_is_no_workdir(tmp_path):
  with pytest.raises(UserError, match="is not a workdir: it has none of run.json"):
    collect(tmp_path, MIB)
  assert not list(tmp_path.iterdir())


def test_a_resumed_run_shows_its_pause():
  launches = [
    {"mode": "train", "seconds": 2.0, "start": START},
    {"mode": "train", "seconds": 2.0, "start": START + 500},
    {"mode": "stop", "seconds": 0.1, "start": START + 502},
  ]
  timings = {"launches": launches, "compile": 5.0, "checkpoint_seconds": []}
  shown = timeline({"started": START + 490, "timings": timings}, first=7)
  assert shown["spans"] == [
    ["train", 0.0, 2.0, 7, 1],
    ["compile", 490.0, 5.0, None, 1],
    ["train", 500.0, 2.0, 8, 1],
    ["stop", 502.0, 0.1, 8, 1],
  ]


def test_launches_without_starts_are_laid_end_to_end():
  launches = [{"mode": "train", "seconds": 2.0}, {"mode": "generate", "seconds": 3.0}]
  shown = timeline({"timings": {"launches": launches, "compile": 5.0}})
  assert not shown["timed"]
  assert [s[:3] for s in shown["spans"]] == [
    ["compile", 0.0, 5.0],
    ["train", 5.0, 2.0],
    ["generate", 7.0, 3.0],
  ]


def test_many_steps_become_fewer_points(tmp_path):
  made = make(tmp_path / "long", at=(4100,), steps=4100)
  run = collect(made, MIB).run
  rows = [r for r in lines(made / "metrics.jsonl") if r["mode"] == "train"]
  train = run["curves"]["train"]
  assert train["each"] == 3 and train["step"][:2] == [3, 6] and train["step"][-1] == 4100
  blocks = [[r["loss"] for r in rows[i : i + 3]] for i in range(0, 4100, 3)]
  assert train["loss"] == pytest.approx([np.mean(b) for b in blocks])
  assert train["loss/low"] == [min(b) for b in blocks]
  assert train["loss/high"] == [max(b) for b in blocks]
  spans = run["timeline"]["spans"]
  assert len(spans) <= 2000 and sum(s[4] for s in spans if s[0] == "train") == 4100


# --- texts -----------------------------------------------------------------------------------


def test_parts_are_about_as_large_as_intended():
  settings = {"num_samples": 4, "max_new_tokens": 2048}
  assert part_size({"generate": settings}) == 32
  assert part_size({"generate": {"num_samples": 1, "max_new_tokens": 10**9}}) == 1
  assert part_size({}) == 128


@pytest.mark.parametrize("most", [0, 10, 59, 60, 161, 162, 177])
def test_as_many_parts_as_fit_and_the_same_of_each_generation(most):
  sizes = {step: {0: 20, 1: 30 + step, 2: 5} for step in (2, 4, 6)}
  kept = kept_parts(sizes, most)
  size = sum(sizes[step][part] for step, parts in kept.items() for part in parts)
  assert size <= most
  expected = {0: [0, 0, 0], 10: [0, 0, 0], 59: [1, 0, 1], 60: [1, 1, 1], 161: [1, 1, 1]}
  expected |= {162: [2, 2, 2], 177: [3, 3, 3]}
  assert [len(kept[s]) for s in (2, 4, 6)] == expected[most]


def test_texts_beyond_the_limit_are_left_out_and_named(tmp_path):
  made = make(tmp_path / "large", prompts=256, samples=1, tokens=1024)
  whole = report(made, max_bytes=64 * MIB)
  assert whole.runs[0]["samples"]["complete"]
  parts = whole.runs[0]["samples"]["parts"]
  assert parts == [[0], [0]] or len(parts[0]) > 1
  size = sum(len(s) for name, s in whole.scripts.items() if re.match(r"r0-[gq]", name))
  half = report(made, max_bytes=size * 2 // 3)
  told = half.runs[0]["samples"]
  assert not told["complete"] and told["max_bytes"] == size * 2 // 3
  assert told["files"] == ["samples/step_000002/", "samples/step_000005/"]
  assert len(half.scripts) < len(whole.scripts)
  assert half.unpacked("r0-index") == whole.unpacked("r0-index"), "all answers are counted"
  none = report(made, max_bytes=0)
  assert not [name for name in none.scripts if re.match(r"r0-[gq]", name)]
  assert none.runs[0]["generations"] == whole.runs[0]["generations"]


def test_what_is_known_is_not_read_again(made, monkeypatch):
  from simpo_jax.report import generations as module

  read, calls = module.read_generation, []
  monkeypatch.setattr(module, "read_generation", lambda f, *a: calls.append(f.name) or read(f, *a))
  known = {}
  first = collect(made, MIB, known)
  again = collect(made, MIB, known)
  assert calls == ["step_000002", "step_000005"]
  assert (again.index, again.parts) == (first.index, first.parts)
  _first(made).write_text(_first(made).read_text().replace("Question", "Q."))
  collect(made, MIB, known)
  assert calls[2:] == ["step_000002"]


@pytest.mark.parametrize("length", [0, 6, 7, 30, 200])
def test_repetition_counts_grams_that_stood_before(length):
  rng = np.random.default_rng(length)
  ids = rng.integers(0, 3, length)
  grams = [tuple(ids[i : i + 4]) for i in range(length - 3)]
  seen = sum(gram in grams[:i] for i, gram in enumerate(grams))
  found = repetition(ids)
  assert math.isnan(found) if length < 7 else found == pytest.approx(seen / len(grams))


def test_repetition_of_extremes():
  assert repetition(np.arange(50_000)) == 0
  assert repetition(np.tile([7, 9], 50)) == pytest.approx(1 - 2 / 97)


# --- the file --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def attacked(tmp_path_factory):
  """A run all of whose texts are hostile."""
  made = make(tmp_path_factory.mktemp("attacked") / "made", len(ATTACKS), texts=ATTACKS)
  run, config = json.loads((made / "run.json").read_text()), (made / "config.json").read_text()
  run.update(status=ATTACKS[0], error=" ".join(ATTACKS), began_with=ATTACKS[1])
  run["model"]["name"] = ATTACKS[2]
  run["data"]["train"]["skipped"] = {a: 1 for a in ATTACKS}
  run["data"]["train"]["examples"] = {a: a for a in ATTACKS}
  run["versions"] = {a: a for a in ATTACKS}
  run["devices"]["kind"] = ATTACKS[3]
  config = {**json.loads(config), "name": ATTACKS[1], "others": {a: a for a in ATTACKS}}
  (made / "run.json").write_text(json.dumps(run))
  (made / "config.json").write_text(json.dumps(config))
  with open(made / "metrics.jsonl", "a") as f:
    f.write(json.dumps({"step": 3, "mode": "bad_step", "pairs": list(ATTACKS)}) + "\n")
    f.write(json.dumps({"step": 24, "mode": "train", "loss": 0.6, **{a: 1.0 for a in ATTACKS}}))
    f.write("\n")
  hostile = made.with_name(ATTACKS[4].replace("/", " "))
  made.rename(hostile)
  return hostile


def test_hostile_text_stays_text(attacked, tmp_path):
  clean = report(make(tmp_path / "clean", len(ATTACKS)))
  page = report(attacked)
  assert page.elements == clean.elements, "not one element more"
  assert page.scripts.keys() == clean.scripts.keys()
  assert page.scripts["script"] == clean.scripts["script"]
  prompts = page.unpacked("r0-q0")
  for number, attack in enumerate(ATTACKS):
    assert prompts[str(number)].startswith(attack), "and nothing of it is lost"
  assert page.runs[0]["config"]["others"] == {a: a for a in ATTACKS}


def test_the_policy_runs_the_one_script_and_fetches_nothing(page):
  given = dict(part.strip().split(" ", 1) for part in page.policy.split(";"))
  assert given["default-src"] == "'none'"
  for name in ("script", "style"):
    digest = hashlib.sha256(page.scripts[name].encode()).digest()
    assert given[f"{name}-src"] == f"'sha256-{base64.b64encode(digest).decode()}'"
  text = page.scripts["script"] + page.scripts["style"]
  own = text.replace("http://www.w3.org/2000/svg", "")
  assert not re.search(r"https?:|//[a-z]+\.|\burl\(|@import", own), "nothing from elsewhere"
  assert not re.search(
    r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|Function\(", text
  )


def test_a_report_is_written_whole_or_not_at_all(made, monkeypatch):
  out = made / "report.html"
  out.write_text("before")
  monkeypatch.setattr("simpo_jax.report.page.page", lambda *_: (1 / i for i in (1, 0)))
  with pytest.raises((ZeroDivisionError, TypeError)):
    write_report([made], out)
  assert out.read_text() == "before"
  assert not list(made.glob("*.tmp")) + list(made.glob(".*.tmp"))


def test_several_runs_share_a_page(tmp_path):
  a, b = make(tmp_path / "x" / "run"), make(tmp_path / "y" / "run", learning_rate=1e-5, at=(3,))
  page = report(a, b)
  assert [r["label"] for r in page.runs] == ["x/run", "y/run"]
  assert [r["config"]["train"]["learning_rate"] for r in page.runs] == [1e-6, 1e-5]
  same = [p[2] for p in page.unpacked("r0-index")["prompts"]]
  assert same == [p[2] for p in page.unpacked("r1-index")["prompts"]], "prompts are matched by hash"
  assert labels([pathlib.Path("runs/a"), pathlib.Path("runs/b")]) == ["a", "b"]
  assert labels([pathlib.Path("a"), pathlib.Path("a")]) == ["1 a", "2 a"]


def test_the_command(tmp_path):
  make(tmp_path / "made")
  (tmp_path / "empty").mkdir()

  def command(*args):
    done = subprocess.run(
      [sys.executable, "-m", "simpo_jax.report", *args],
      cwd=tmp_path,
      capture_output=True,
      text=True,
    )
    return done.returncode, done.stdout.strip(), done.stderr.strip()

  assert command("made") == (0, "made/report.html", "")
  assert command("made", "made", "--out=both.html") == (0, "both.html", "")
  assert len(Page(tmp_path / "both.html").runs) == 2
  code, _, error = command("empty")
  assert code == 2 and error.startswith("error: empty is not a workdir")
  code, _, error = command("made", "--out=nowhere/x.html")
  assert code == 2 and "--out=nowhere/x.html cannot be written" in error


# --- while a run goes on ---------------------------------------------------------------------


def options(write=True, every_seconds=0.0, max_mib=1):
  return ReportSettings(write=write, every_seconds=every_seconds, max_mib=max_mib)


def test_it_is_written_as_the_run_goes_and_at_its_end(made, monkeypatch):
  monkeypatch.setattr(live, "_MIN_PAUSE_FACTOR", 0)
  with live.reporting(made, options(every_seconds=0.02), writes=True):
    deadline = time.monotonic() + 30
    while not (made / live.NAME).exists():
      assert time.monotonic() < deadline
      time.sleep(0.01)
    (made / "config.json").write_text(json.dumps({"name": "changed"}))
  assert Page(made / live.NAME).runs[0]["name"] == "changed"


def test_a_run_that_fails_has_a_report_too(made):
  with pytest.raises(KeyError), live.reporting(made, options(), writes=True):
    raise KeyError
  assert Page(made / live.NAME).runs


@pytest.mark.parametrize(("write", "writes"), [(False, True), (True, False)])
def test_it_can_be_left_out_and_only_one_process_writes_it(made, write, writes):
  with live.reporting(made, options(write), writes):
    pass
  assert not (made / live.NAME).exists()


def test_what_goes_wrong_is_told_once(made, monkeypatch, capsys):
  calls = []

  def fails(*_):
    calls.append(1)
    raise MemoryError("no\nroom")

  monkeypatch.setattr(live, "_MIN_PAUSE_FACTOR", 0)
  monkeypatch.setattr(live, "write_report", fails)
  with live.reporting(made, options(every_seconds=0.01), writes=True):
    while len(calls) < 3:
      time.sleep(0.01)
  told = "report.html cannot be written (no room); the run continues without it\n"
  assert capsys.readouterr().err == told


def test_a_report_that_hangs_is_not_waited_for(made, monkeypatch, capsys):
  hangs = threading.Event()
  monkeypatch.setattr(live, "_JOIN_SECONDS", 0.05)
  monkeypatch.setattr(live, "write_report", lambda *_: hangs.wait(60))
  start = time.monotonic()
  with live.reporting(made, options(), writes=True):
    pass
  assert time.monotonic() - start < 30
  hangs.set()
  told = f"report.html is not ready; write it with: python -m simpo_jax.report {made}\n"
  assert capsys.readouterr().err == told


# --- signs -----------------------------------------------------------------------------------


def generation(step, **changes):
  usual = {"mean_tokens": 100.0, "repetition": 0.05, "cut_share": 0.0, "empty_share": 0.0}
  return {"step": step, **usual, **changes}


def evidence(**changes):
  """Of a run in which all is well."""
  rng = np.random.default_rng(0)
  train = {
    "rewards/margins": (np.linspace(0, 1, 100) + 0.01 * rng.normal(size=100)).tolist(),
    "rewards/accuracies": np.linspace(0.5, 0.8, 100).tolist(),
    "logps/chosen": np.linspace(-1.2, -1.3, 100).tolist(),
    "grad_norm": (2 + rng.random(100)).tolist(),
    "step_seconds": [1.0] * 100,
    "data_wait_seconds": [0.01] * 100,
  }
  usual = Evidence(
    train=train,
    held_out={},
    generations=[generation(2), generation(9)],
    bad_steps=[],
    record={"compiles": 1, "data": {"train": {"total": 1000, "skipped": {"empty": 2}}}},
    config={"generate": {"max_new_tokens": 128}},
    failure=None,
  )
  changes = {k: {**train, **v} if k == "train" else v for k, v in changes.items()}
  return usual._replace(**changes)


def state(e, key):
  [found] = [s for s in check_health(e) if s.key == key]
  return found.state


def test_nothing_is_wrong_with_a_good_run():
  assert {s.state for s in check_health(evidence())} == {"ok"}


def falling(to, noise=0.0):
  """A rise to 1, then a fall, in 100 steps."""
  values = np.concatenate([np.linspace(0, 1, 60), np.full(40, to)])
  return (values + noise * np.random.default_rng(1).normal(size=100)).tolist()


def ends(**changes):
  return {"generations": [generation(2), generation(9, **changes)]}


def held_out(name, *values):
  return {"held_out": {name: list(values)}}


def skipped(n):
  return {"record": {"compiles": 1, "data": {"train": {"total": 1000, "skipped": {"empty": n}}}}}


@pytest.mark.parametrize(
  ("key", "expected", "changes"),
  [
    ("not_finite", "watch", {"bad_steps": [3]}),
    ("not_finite", "warning", {"failure": {"step": 3, "loss": "nan"}}),
    ("length_growth", "ok", ends(mean_tokens=124.0)),
    ("length_growth", "watch", ends(mean_tokens=125.0)),
    ("length_growth", "warning", ends(mean_tokens=150.0)),
    ("length_growth", "unknown", {"generations": [generation(2)]}),
    ("repetition", "ok", ends(repetition=0.19)),
    ("repetition", "watch", ends(repetition=0.2)),
    ("repetition", "warning", ends(repetition=0.4)),
    ("repetition", "unknown", {"generations": [generation(2, repetition=None)]}),
    ("cut_off", "watch", ends(cut_share=0.1)),
    ("cut_off", "warning", ends(cut_share=0.3)),
    ("cut_off", "ok", {**ends(cut_share=1.0), "config": {"generate": {"ignore_eos": True}}}),
    ("cut_off", "unknown", {"generations": []}),
    ("empty", "watch", ends(empty_share=0.01)),
    ("empty", "warning", ends(empty_share=0.05)),
    ("chosen_logprob", "watch", held_out("logps/chosen", -1.2, -1.45)),
    ("chosen_logprob", "warning", held_out("logps/chosen", -1.2, -1.0, -1.7)),
    ("chosen_logprob", "ok", held_out("logps/chosen", -1.2, -3.0, -1.2)),
    ("chosen_logprob", "warning", {"train": {"logps/chosen": np.linspace(-1, -2, 100).tolist()}}),
    ("chosen_logprob", "unknown", {"train": {"logps/chosen": [-1.0] * 19}}),
    ("margin", "ok", held_out("rewards/margins", 0.1, 1.0, 0.8)),
    ("margin", "watch", held_out("rewards/margins", 0.1, 1.0, 0.75)),
    ("margin", "warning", held_out("rewards/margins", 0.1, 1.0, 0.5)),
    ("margin", "watch", {"train": {"rewards/margins": falling(0.6)}}),
    ("margin", "warning", {"train": {"rewards/margins": falling(0.1, noise=0.1)}}),
    ("margin", "ok", {"train": {"rewards/margins": falling(0.7, noise=2.0)}}),
    ("accuracy", "watch", held_out("rewards/accuracies", 0.5, 0.8, 0.69)),
    ("accuracy", "warning", held_out("rewards/accuracies", 0.5, 0.8, 0.6)),
    ("accuracy", "warning", {"train": {"rewards/accuracies": falling(0.5)}}),
    ("gradient", "watch", {"train": {"grad_norm": [1.0] * 99 + [10.0]}}),
    ("gradient", "warning", {"train": {"grad_norm": [1.0] * 99 + [100.0]}}),
    ("gradient", "unknown", {"train": {"grad_norm": [1.0] * 5}}),
    ("skips", "watch", skipped(10)),
    ("skips", "warning", skipped(50)),
    ("skips", "unknown", {"record": {}}),
    ("waiting", "watch", {"train": {"data_wait_seconds": [0.2] * 100}}),
    ("waiting", "warning", {"train": {"data_wait_seconds": [0.5] * 100}}),
    ("compiles", "warning", {"record": {"compiles": 2}}),
    ("compiles", "unknown", {"record": {}}),
  ],
)
def test_signs(key, expected, changes):
  assert state(evidence(**changes), key) == expected


def test_noise_alone_is_no_sign():
  rng = np.random.default_rng(2)
  loud = 0
  for _ in range(50):
    noise = {
      "rewards/margins": (0.5 + 0.3 * rng.normal(size=200)).tolist(),
      "rewards/accuracies": rng.binomial(8, 0.7, 200).astype(float).tolist(),
      "logps/chosen": (-1.2 + 0.2 * rng.normal(size=200)).tolist(),
    }
    noise["rewards/accuracies"] = [x / 8 for x in noise["rewards/accuracies"]]
    found = {s.key: s.state for s in check_health(evidence(train=noise))}
    loud += sum(found[k] != "ok" for k in ("margin", "accuracy", "chosen_logprob"))
  assert loud <= 8, "of 150"


def test_signs_of_nothing_are_unknown_and_the_worst_come_first():
  nothing = Evidence({}, {}, [], [], {}, {}, None)
  assert {s.state for s in check_health(nothing)} == {"unknown", "ok"}
  order = [s.state for s in check_health(evidence(bad_steps=[1], **ends(repetition=0.5)))]
  assert order[:2] == ["warning", "watch"] and set(order[2:]) == {"ok"}


# --- floors ----------------------------------------------------------------------------------

MODEL = {"layer_weights": 10**9, "output_weights": 10**8, "cache_bytes_per_token": 1000.0}


def test_floors_are_those_of_a_calculation_by_hand():
  record = {
    "devices": {"kind": "TPU v5p", "count": 16},
    "processes": 4,
    "model": {**MODEL, "item_bytes": 2},
  }
  config = {"train": {"batch_size": 8, "lora_rank": 0}, "generate": {"mode": "host_data_parallel"}}
  row = {"tokens_per_second": 100.0, "step_seconds": 50.0}
  row |= {"length/chosen": 100.0, "length/rejected": 150.0}
  flops = 6 * (1e9 * 5000 + 1e8 * 2000)
  assert least_times.train_seconds(record, config, row) == pytest.approx(flops / (16 * 459e12))
  adapters = {**config, "train": {"batch_size": 8, "lora_rank": 16}}
  assert least_times.train_seconds(record, adapters, row) == pytest.approx(
    flops * 4 / 6 / (16 * 459e12)
  )
  # Reading the weights 300 times on a host's four chips, and the cache of all on sixteen.
  cache = 1000.0 * (100 * 99 / 2 + 300 * 299 / 2)
  expected = (300 * 1.1e9 * 2 / 4 + cache / 16) / 2.765e12
  counts = np.asarray([100, 300])
  assert least_times.generate_seconds(record, config, counts) == pytest.approx(expected)
  counts = np.full(10**5, 300)
  expected = 2 * 1.1e9 * 300 * 10**5 / (16 * 459e12)
  assert least_times.generate_seconds(record, config, counts) == pytest.approx(expected)


def test_floors_of_what_is_not_known():
  record = {"devices": {"kind": "cpu", "count": 1}, "processes": 1, "model": MODEL}
  assert least_times.device_rates(record) is None
  assert least_times.train_seconds(record, {}, {}) is None
  assert least_times.generate_seconds({}, {}, np.asarray([3])) is None
  measured = measured_rates("now")
  assert measured["flops"] > 1e8 and measured["bytes_per_second"] > 1e7
  assert better(measured, {**measured, "flops": 1e20})["flops"] == 1e20
  halves = least_times.device_rates(
    {**record, "devices": {"kind": "cpu", "count": 2}, "rates": measured}
  )
  assert halves and halves["flops"] == measured["flops"] / 2
