"""Runs that older code left half way are gone on with, exported and asked, as if by that code.

tests/compatibility/make.py says how they came about.
"""

import dataclasses
import hashlib
import json
import math
import pathlib
import runpy
import shutil
from typing import NamedTuple

import numpy as np
import pytest
import transformers

from simpo_jax import run as loop
from simpo_jax.checkpoint.layout import METADATA
from simpo_jax.checkpoint.resume import check_identity
from simpo_jax.errors import UserError
from simpo_jax.export.runs import export_run
from simpo_jax.loaded_model.model import load_model
from simpo_jax.models import config as model_config
from simpo_jax.models import weights
from simpo_jax.program.ledger import digest
from simpo_jax.sample import answers
from simpo_jax.workdir import files
from support.hosts import run_group
from support.run_outcome import record, rows
from support.tiers import sweep

pytestmark = pytest.mark.usefixtures("one_executable")

HERE = pathlib.Path(__file__).resolve().parent
OLD = HERE / "e143b35"
ALONE = ("stopped", "lora", "average", "prepared")  # of one process
RUNS = (*ALONE, "hosts")
STEP = 3  # after which each was stopped
SUMS = "7422af3d3c7a19c04f2ef992c08eee3341bbd910adb01efa1eb82420a6a12e0b"
BEFORE = "since the checkpoint .* these have changed: "


def test_the_files_are_as_they_were_written():
  sums = (HERE / "SHA256SUMS").read_bytes()
  assert hashlib.sha256(sums).hexdigest() == SUMS, "what was written once is not written again"
  lines = (line.split("  ") for line in sums.decode().splitlines())
  written = {name: digest for digest, name in lines}
  there = {str(p.relative_to(HERE)): p for p in OLD.rglob("*") if p.is_file()}
  there = {name: p for name, p in there.items() if p.parent.name != "__pycache__"}
  found = {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in there.items()}
  assert found == written


@pytest.fixture
def place(tmp_path, monkeypatch):
  """A copy of all of it, which is the current folder, as it was when the runs were started."""
  shutil.copytree(OLD, tmp_path / "place", ignore=shutil.ignore_patterns("__pycache__"))
  monkeypatch.chdir(tmp_path / "place")


def config_of(run):
  """As the command line would read it."""
  return runpy.run_path("config.py")["get_config"](run)


def expected_of(run):
  return json.loads(pathlib.Path(run, "expected.json").read_text())


def check_close(found, expected, where=""):
  """Equal but for what another processor rounds otherwise."""
  if isinstance(expected, dict):
    assert found.keys() == expected.keys(), where
    for name in expected:
      check_close(found[name], expected[name], f"{where}.{name}")
  elif isinstance(expected, list):
    assert len(found) == len(expected), where
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
      check_close(a, b, f"{where}[{i}]")
  elif isinstance(expected, float):
    assert math.isclose(found, expected, rel_tol=1e-5, abs_tol=1e-6), (where, found, expected)
  else:
    assert found == expected, where


def check_resumed(run):
  workdir, expected = pathlib.Path(run, "workdir"), expected_of(run)
  check_close(rows(workdir / "metrics.jsonl"), expected["metrics"], run)
  check_close({name: rows(workdir / name) for name in expected["files"]}, expected["files"], run)
  said = record(workdir)
  assert said["status"] == "done" and [r["step"] for r in said["resumes"]] == [STEP]
  # The second half is not in what the older code left.
  before = rows(OLD / run / "workdir" / "metrics.jsonl")
  assert len(before) < len(expected["metrics"])


@sweep("run", ALONE)
def test_it_goes_on_as_if_nobody_had_stopped_it(place, run):
  loop.run(config_of(run), f"{run}/workdir")
  check_resumed(run)


@pytest.mark.slow
def test_two_processes_go_on(place, tmp_path):
  place = pathlib.Path.cwd()
  command = ["-m", "simpo_jax.main", "--config=config.py:hosts", "--workdir=hosts/workdir"]
  ends = run_group(tmp_path, [command] * 2, cwds=[place] * 2)
  assert [end.code for end in ends] == [0, 0], ends[0].err[-2000:]
  check_resumed("hosts")


def answers_of(run):
  """By prompt, what the undisturbed run of the older code answered after the step."""
  files = expected_of(run)["files"]
  found = [r for name in files if name.startswith(f"samples/step_{STEP:06d}") for r in files[name]]
  return {r["prompt"]: r for r in found}


@pytest.mark.parametrize("run", RUNS)
def test_it_answers(place, run):
  speaker = load_model(f"{run}/workdir", {})
  out = []
  answers.sample(speaker, answers.usable_prompts(speaker, print), out.append, print, print)
  found = {r["prompt"]: r for r in map(json.loads, out)}
  of_host = {"process_index": 0, "process_count": 1}  # here there is one
  check_close(found, {prompt: {**r, **of_host} for prompt, r in answers_of(run).items()})
  assert speaker.step == STEP and len(found) == 3


@pytest.mark.parametrize("run", RUNS)
def test_it_exports(place, run, tmp_path):
  """What transformers makes of the export answers as the run did."""
  export_run(pathlib.Path(run, "workdir"), tmp_path / "out")
  torch = pytest.importorskip("torch")
  net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  for prompt, expected in answers_of(run).items():
    messages = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text).input_ids
    answer = expected["generated_token_ids"]
    with torch.no_grad():
      logits = net(torch.tensor([ids + answer])).logits[0, len(ids) - 1 : -1]
    assert logits.argmax(-1).tolist() == answer, prompt
    logprobs = logits.log_softmax(-1)[range(len(answer)), answer]
    assert float(logprobs.sum()) == pytest.approx(expected["logprob_sum"], abs=1e-4)


# --- what later versions may add --------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class LaterRope(model_config.RopeScaling):
  beta_fast: float = 32.0


@dataclasses.dataclass(frozen=True)
class LaterModel(model_config.ModelConfig):
  experts: int = 0


LaterRope.__name__, LaterModel.__name__ = "RopeScaling", "ModelConfig"


@pytest.fixture
def later(monkeypatch):
  """`later(rope={...}, field=value)`: a version with more fields, which a model has at these."""

  def begin(rope=None, **fields):
    read, settings = weights.read_config, fields

    def of_later(folder):
      config, hf = read(folder)
      found = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
      if found["rope_scaling"]:
        found["rope_scaling"] = LaterRope(**vars(found["rope_scaling"]), **(rope or {}))
      return LaterModel(**found, **settings), hf

    monkeypatch.setattr(weights, "read_config", of_later)

  return begin


def test_a_model_that_may_have_more_is_the_same_without_it(place, later, tmp_path):
  later()
  loop.run(config_of("stopped"), "stopped/workdir")
  check_resumed("stopped")
  for run in ("average", "lora"):
    export_run(pathlib.Path(run, "workdir"), tmp_path / run)
    assert load_model(f"{run}/workdir", {}).step == STEP


def refused(run):
  """By all that reads the checkpoint."""
  with pytest.raises(UserError, match=f"{BEFORE}model's config; put back"):
    loop.run(config_of(run), f"{run}/workdir")
  with pytest.raises(UserError, match="began with: its model's config differ"):
    export_run(pathlib.Path(run, "workdir"), pathlib.Path("out"))
  with pytest.raises(UserError, match="began with: its model's config differ"):
    load_model(f"{run}/workdir", {})


@pytest.mark.parametrize("more", ({"experts": 8}, {"rope": {"beta_fast": 1.0}}))
def test_a_model_that_has_more_is_another(place, later, more):
  later(**more)
  refused("stopped")


@pytest.mark.parametrize(
  ("run", "field", "value"),
  (("stopped", "rope_theta", 5e5), ("lora", "final_logit_softcapping", 20.0)),
)
def test_a_changed_model_is_noticed(place, run, field, value):
  path = pathlib.Path("gemma2" if run == "lora" else "llama", "config.json")
  path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
  refused(run)


def test_what_a_checkpoint_does_not_tell_has_not_changed(place):
  folder = pathlib.Path("stopped/workdir")
  before = json.loads(next(folder.glob(f"checkpoints/*/{METADATA}")).read_text())["identity"]
  check_identity(folder, before, {**before, "split of the tokenizer": "0"})
  with pytest.raises(UserError, match=f"{BEFORE}weights; put back"):
    check_identity(folder, before, {**before, "split of the tokenizer": "0", "weights": "0"})


def without(config, name):
  group, field = name.split(".")
  return {**config, group: {k: v for k, v in config[group].items() if k != field}}


@pytest.mark.parametrize(
  ("older", "differs"),
  (
    (lambda c: without(c, "train.ema_decay"), None),  # it is at its default
    (lambda c: without(without(c, "data.workers"), "train.lora_targets"), None),
    (lambda c: without(c, "simpo.sft_weight"), "simpo.sft_weight"),  # it is not
    (lambda c: {**c, "later": {"field": 1}}, "later.field"),
  ),
)
def test_a_config_of_another_version(place, older, differs):
  """Without a field that is new, or with one that this version does not have."""
  path, c = pathlib.Path("stopped/workdir/config.json"), config_of("stopped")
  path.write_text(json.dumps(older(json.loads(path.read_text()))))
  now = json.loads(c.to_json())
  if differs is None:
    files.unlock(files.make_workdir("stopped/workdir", now))
  else:
    with pytest.raises(UserError, match=rf"of another config \({differs}\)"):
      files.make_workdir("stopped/workdir", now)
    files.unlock(pathlib.Path("stopped/workdir"))


# --- digests ----------------------------------------------------------------------------------


class Pair(NamedTuple):
  name: str
  ids: np.ndarray


@dataclasses.dataclass
class Sizes:
  width: int
  parts: tuple = ("a", 1.5)


@dataclasses.dataclass
class MoreSizes(Sizes):
  depth: int = 3
  names: list = dataclasses.field(default_factory=list)


@pytest.mark.parametrize(
  ("parts", "words"),
  (  # by the code of e143b35, which has left them in checkpoints
    (("text", "\u00e9"), (-2113206019, -2085153265)),
    ((b"bytes\0",), (1469770364, -1372283988)),
    (
      ([Pair("a", np.arange(3, dtype=np.int32)), Pair("b", np.zeros((2, 0), np.int8))],),
      (-1636629322, -1450922765),
    ),
    ((("[]", [["x"], "y"]), np.float32(0.5), 7, 0.25, True), (-1806555587, 774789882)),
  ),
)
def test_a_digest_stays_what_it_was(parts, words):
  assert digest(*parts) == words


@pytest.mark.parametrize(
  "value",
  (object(), {1, 2}, np.array([None]), np.array([object()]), Sizes, lambda: 0, 2**70, range(3)),
)
def test_a_digest_of_what_it_does_not_know_is_refused(value):
  for part in (value, [value], {"a": value}, Sizes(1, value)):
    with pytest.raises(TypeError, match="a digest of"):
      digest(part)


def test_a_digest_of_fields():
  assert digest(Sizes(1)) == digest(MoreSizes(1)) == digest(MoreSizes(1, names=[]))
  assert digest({"a": 1, "b": None}) == digest({"b": None, "a": 1})
  others = [
    Sizes(1), Sizes(2), Sizes(1, ("a", 2.5)), MoreSizes(1, depth=4), MoreSizes(1, names=["a"]),
    None, {}, {"width": 2, "more": None}, (), "", {"": ()},
  ]  # fmt: skip
  assert len({digest(value) for value in others}) == len(others)
