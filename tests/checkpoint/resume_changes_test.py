"""What may change under a run that goes on, what may not, and what goes on with it."""

import json
import shutil

import jax
import pytest

from simpo_jax import run as loop
from simpo_jax.checkpoint import resume
from simpo_jax.config import default_config
from simpo_jax.data.prepared import builder
from simpo_jax.errors import UserError
from simpo_jax.runtime import modes
from support.hf_models import save_hf_folder
from support.run_outcome import assert_same, outcome, record
from support.runs_in_process import Lost, go, lose
from support.sources import find_files

pytestmark = pytest.mark.usefixtures("one_executable")

TEMPLATE = (
  "{% for m in messages %}{{ m.content }}"
  "{% if m.role == 'user' %} {{ strftime_now('%d.%m.') }}\nA:{% else %}</s>{% endif %}{% endfor %}"
)
DAYS = ("2026-11-23T23:59:00", "2026-11-24T00:01:00")


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  """A model's folder, and prepared pairs of which every fourth is no pair once it is cut."""
  folder = tmp_path_factory.mktemp("source")
  save_hf_folder(folder / "model", TEMPLATE)
  rows = [
    {"prompt": [{"role": "user", "content": f"q{i}"}], "chosen": "y" * (1 + i), "rejected": "no"}
    for i in range(24)
  ]
  for row in rows[::4]:
    row["chosen"], row["rejected"] = ("s" * 200 + end for end in "12")
  (folder / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  target = builder.Target(folder / "data", "a", "1.0.0", {})
  builder.build(find_files(str(folder / "a.jsonl")), target, 0.0, 0.5, workers=1)
  return folder


@pytest.fixture
def start(source, monkeypatch):
  """`start(folder, day)`: the run, or what is left of it, on a day."""

  def start(folder, day=DAYS[0]):
    monkeypatch.setattr(resume, "_now", lambda: day)
    _, folder = go(
      folder,
      model__source=str(source / "model"),
      data__dir=str(source / "data"),
      data__train=("tfds:a",),
      data__lookahead=2,
      data__max_skip_fraction=0.5,
      checkpoint__every=1,
      generate__at_steps=(),
      evaluate__every=0,
    )
    return folder

  return start


@pytest.fixture
def lost(source, tmp_path, start, before_launch):  # noqa: F811
  """A run that was lost in step 4, the second of two that read their rows together."""
  if not (source / "lost").exists():
    before_launch(3, lose)
    with pytest.raises(Lost):
      start(source / "lost")
  return shutil.copytree(source / "lost", tmp_path / "lost")


@pytest.fixture(scope="module")
def undisturbed():
  return {}  # the outcome, by day


def of_day(undisturbed, start, tmp_path, day):
  if day not in undisturbed:
    folder = start(tmp_path / "undisturbed", day)
    undisturbed[day] = outcome(folder), record(folder)
  return undisturbed[day]


def test_on_another_day_it_trains_on_the_same_text(tmp_path, lost, start, undisturbed, capsys):
  start(lost, DAYS[1])
  assert "not the program" not in capsys.readouterr().out
  assert "program_changes" not in record(lost)["resumes"][0]
  assert record(lost)["date"] == DAYS[0]
  assert_same(outcome(lost), of_day(undisturbed, start, tmp_path / "one", DAYS[0])[0])
  other = of_day(undisturbed, start, tmp_path / "other", DAYS[1])[0]
  assert other["metrics"] != outcome(lost)["metrics"], "the text has no date in it"


def test_the_date_is_also_that_of_a_run_whose_all_is_taken(tmp_path, lost, monkeypatch):
  config = default_config()
  monkeypatch.setattr(resume, "_now", lambda: DAYS[1])
  assert resume.run_origin(None, config).date == DAYS[1]
  for name in (lost, lost / "checkpoints" / "step_000003"):
    config.checkpoint.init_from = str(name)
    config.checkpoint.init_what = "all"
    assert resume.run_origin(str(tmp_path / "none"), config).date == DAYS[0]
    config.checkpoint.init_what = "weights"
    assert resume.run_origin(str(tmp_path / "none"), config).date == DAYS[1]


def test_counts_of_skipped_rows_go_on(tmp_path, lost, start, undisturbed):
  expected = of_day(undisturbed, start, tmp_path, DAYS[0])[1]["data"]
  assert expected["train"]["skipped"]["identical"] > 1
  start(lost)
  assert record(lost)["data"] == expected


def test_the_limit_of_skipped_rows_is_of_the_whole_run(lost, start, monkeypatch):
  asked = []
  monkeypatch.setattr(
    modes, "check_read_so_far", lambda *report_and_limit: asked.append(report_and_limit)
  )
  start(lost)
  whole = record(lost)["data"]["train"]
  assert [(r.total, r.skipped, limit) for r, limit in asked] == [
    (whole["total"], whole["skipped"], 0.5)
  ], "once: the rows of the last step; those before were read before it was lost"


def swap(folder, tokens):
  """Two tokens of the vocabulary change their ids."""
  path = folder / "tokenizer.json"
  content = json.loads(path.read_text())
  vocab, added = content["model"]["vocab"], content["added_tokens"]
  if tokens[0] in vocab:
    vocab[tokens[0]], vocab[tokens[1]] = vocab[tokens[1]], vocab[tokens[0]]
  else:
    first, second = ([a for a in added if a["content"] == t][0] for t in tokens)
    first["content"], second["content"] = tokens[1], tokens[0]
  path.write_text(json.dumps(content))


def change_a_weight(folder):
  """One byte of the last tensor."""
  path = folder / "model.safetensors"
  content = bytearray(path.read_bytes())
  content[-1] ^= 1
  path.write_bytes(content)


def test_files_of_the_model_that_changed_are_named(source, lost, start):
  files = [source / "model" / name for name in ("tokenizer.json", "model.safetensors")]
  before = [path.read_bytes() for path in files]
  for change, named in (
    (lambda folder: swap(folder, ("#", "$")), "tokenizer"),
    (lambda folder: swap(folder, ("<|0|>", "<|1|>")), "tokenizer"),
    (change_a_weight, "weights"),
  ):
    try:
      change(source / "model")
      with pytest.raises(UserError, match=rf"step_000003 these have changed: {named}; put back"):
        start(lost)
    finally:
      for path, content in zip(files, before, strict=True):
        path.write_bytes(content)
  start(lost)
  assert record(lost)["status"] == "done"


def test_another_program_is_told_of_and_goes_on(lost, start, monkeypatch, capsys):
  monkeypatch.setenv("LIBTPU_INIT_ARGS", "--other")
  start(lost)
  words = "LIBTPU_INIT_ARGS: none, now --other"
  assert capsys.readouterr().out.count(f"not the program that wrote the checkpoint ({words})") == 1
  assert record(lost)["resumes"][0]["program_changes"] == [words]
  assert record(lost)["status"] == "done"


def test_the_text_of_the_program_counts(lost, start, monkeypatch):
  compile_program, before = loop.compile_program, record(lost)["program"]

  def same_executable(cfg, lowered):  # as this setting gives on CPU; compiling takes long
    compiled = compile_program(cfg, lowered._replace(fingerprint=before))
    return compiled._replace(fingerprint=lowered.fingerprint)

  monkeypatch.setattr(loop, "compile_program", same_executable)
  with jax.default_matmul_precision("float32"):
    start(lost)
  changes = record(lost)["resumes"][0]["program_changes"]
  assert [c.partition(":")[0] for c in changes] == ["program text", "jax_default_matmul_precision"]
