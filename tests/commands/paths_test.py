"""Paths as users write them: they lead where the system would go, in every command."""

import io
import json
import os
import pathlib
import re

import pytest

from simpo_jax.data.prepared.dataset import open_prepared
from simpo_jax.demo import __main__ as demo
from simpo_jax.errors import UserError
from simpo_jax.loaded_model.model import load_model
from simpo_jax.storage.paths import brief, plain
from support.commands import command
from support.folders import ROOT
from support.hf_models import hf_model, save_hf_folder
from support.hosts import flags
from support.run_outcome import record
from support.runs_in_process import SETTINGS
from support.tiers import sweep

pytestmark = pytest.mark.usefixtures("one_executable")

RUN = {**SETTINGS, "train.steps": 2, "generate.at_steps": (2,), "evaluate.at_start": True}
PAIRS = [{"prompt": f"Say {i}.", "chosen": f"{i}!", "rejected": "No."} for i in range(40)]
# From the folder `here`; the home folder is `home`, and `link` leads to `elsewhere/deep`.
KINDS = ("../runs/a", "./b", "x/../c", "~/d", "link/../e", "f", "/{root}/here/../g", ".")


@pytest.fixture
def here(tmp_path, monkeypatch):
  """The current folder, with neighbors."""
  for name in ("here", "home", "elsewhere/deep", "runs"):
    (tmp_path / name).mkdir(parents=True)
  (tmp_path / "here" / "link").symlink_to(tmp_path / "elsewhere" / "deep")
  monkeypatch.chdir(tmp_path / "here")
  monkeypatch.setenv("HOME", str(tmp_path / "home"))
  return tmp_path / "here"


# --- where they lead -------------------------------------------------------------------------


@pytest.mark.parametrize(
  ("name", "expected"),
  [
    ("a", "here/a"),
    ("./a", "here/a"),
    ("a/./b/", "here/a/b"),
    ("..", ""),
    ("../a", "a"),
    ("a/../../b", "b"),
    (".", "here"),
    ("", "here"),
    ("~", "home"),
    ("~/../a", "a"),
    ("link/a", "here/link/a"),  # a link stays, for the user to recognize
    ("link/../a", "elsewhere/a"),
    ("link/b/../a", "here/link/a"),
    ("link/../deep/../a", "elsewhere/a"),
  ],
)
def test_by_hand(here, name, expected):
  assert plain(name) == here.parent / expected
  if "~" not in name:
    assert plain(here / name) == here.parent / expected


@pytest.mark.parametrize(
  "name", [".", "..", "link", "link/..", "link/../../here", "../here/link/.."]
)
def test_as_the_system_goes(here, name):
  found = plain(name)
  assert os.path.samefile(found, name)
  assert found.is_absolute() and ".." not in found.parts


def test_beyond_the_root_and_through_a_loop(here):
  assert plain("/../../a") == pathlib.Path("/a")
  assert plain("//a/../b") == pathlib.Path("/b")
  (here / "loop").symlink_to("loop")
  assert plain("loop/../a") == here / "a"


def test_what_leads_nowhere_is_told(here, monkeypatch):
  with pytest.raises(UserError, match="~nobody-of-this-name/a cannot be a path"):
    plain("~nobody-of-this-name/a")
  gone = here / "gone"
  gone.mkdir()
  monkeypatch.chdir(gone)
  gone.rmdir()
  with pytest.raises(UserError, match=r"a cannot be a path \(No such file or directory\)"):
    plain("a")


def test_shown_from_here(here):
  assert brief(here / "runs" / "a") == "runs/a"
  assert brief(here.parent / "runs") == str(here.parent / "runs")
  assert brief("gs://bucket/a") == "gs://bucket/a"


# --- in every command ------------------------------------------------------------------------


def checkpoints(folder):
  return [p.name for p in (folder / "checkpoints").iterdir()]


@sweep("name", KINDS, default=2)
def test_a_run_and_what_is_made_of_it(here, name, monkeypatch, capsys):
  name = name.format(root=str(here.parent)[1:])
  if name == ".":
    (here / "empty").mkdir()
    monkeypatch.chdir(here / "empty")
  folder = pathlib.Path(os.path.expanduser(name))
  (here / "x").mkdir()  # for the system to follow x/..
  command("simpo_jax.main", *flags(name, RUN))
  assert record(folder)["status"] == "done" and checkpoints(folder) == ["step_000002"]
  assert os.listdir(folder).count("attempts") == 0
  out = f"{name}-out" if name != "." else "../out"
  command("simpo_jax.export", f"--workdir={name}", f"--out={out}")
  assert (pathlib.Path(os.path.expanduser(out)) / "model.safetensors").is_file()
  command("simpo_jax.report", name)
  (folder / "report.html").unlink()
  command("simpo_jax.report", name, f"--out={name}/again.html")
  assert (folder / "again.html").is_file() and not (folder / "report.html").exists()
  capsys.readouterr()
  for what in ("svg", "json"):
    command("simpo_jax.compare", f"--workdir={name}", f"--{what}={out}/made.{what}")
    assert (pathlib.Path(os.path.expanduser(out)) / f"made.{what}").is_file()
  assert load_model(name, {}).step == 2
  # Another run begins with it.
  again = {**RUN, "checkpoint.init_from": name}
  command("simpo_jax.main", *flags(f"{out}/second", again))
  second = pathlib.Path(os.path.expanduser(out)) / "second"
  assert os.path.samefile(record(second)["began_with"], folder / "checkpoints" / "step_000002")


@pytest.fixture
def model(here):
  """../model, which random weights are made for."""
  save_hf_folder(here.parent / "model", None)
  hf_model("Llama").save_pretrained(here.parent / "model")
  return "../model"


@pytest.fixture
def pairs(here):
  rows = "".join(json.dumps(row) + "\n" for row in PAIRS)
  (here.parent / "data").mkdir()
  (here.parent / "data" / "pairs.jsonl").write_text(rows)
  return "../data/pairs.jsonl"


def test_answers_of_a_model(here, model, capsys):
  (here / "asked.txt").write_text("Hello?\n")
  flags = ("--prompts=./asked.txt", "--max_new_tokens=2", "--out=../runs/answers.jsonl")
  command("simpo_jax.sample", f"--model={model}", *flags)
  [row] = map(json.loads, (here.parent / "runs" / "answers.jsonl").read_text().splitlines())
  assert row["prompt"] == "Hello?"


def test_a_conversation_is_saved(here, model, monkeypatch, capsys):
  monkeypatch.setattr("sys.stdin", io.StringIO("/save x/../../runs/said.json\n"))
  (here / "x").mkdir()
  command("simpo_jax.chat", f"--model={model}", "--max_new_tokens=2")
  assert json.loads((here.parent / "runs" / "said.json").read_text())["model"] == model


def test_data(here, pairs, capsys):
  command("simpo_jax.prepare", f"--source={pairs}", "--out=../made", "--name=a", "--workers=1")
  [use] = re.findall("use: (.*)", capsys.readouterr().out)
  used = ["--config.data.train=tfds:a", f"--config.data.dir={here.parent / 'made'}"]
  assert use.split()[:2] == used
  command("simpo_jax.prepare", "--verify=tfds:a", "--out=./../made")
  for train, where in ((pairs, ""), ("tfds:a", "../made"), ("tfds:../made/a", ""), ("tfds:a", ".")):
    if where == ".":
      os.chdir("../made")
    settings = {
      **RUN,
      "data.train": train,
      "data.dir": where,
      "evaluate.at_start": False,
      "evaluate.every": 0,
    }
    folder = f"../runs/{train.replace('/', '_')}{len(where)}"
    command("simpo_jax.main", *flags(folder, settings))
    assert record(pathlib.Path(folder))["status"] == "done"
    config = json.loads((pathlib.Path(folder) / "config.json").read_text())
    assert config["data"]["train"] == [train] and config["data"]["dir"] == where, "as it was typed"


def test_the_identity_of_data_is_that_of_earlier_versions(here, pairs):
  """Without checksums it is the path as it was typed, which unfinished runs have saved."""
  command("simpo_jax.prepare", f"--source={pairs}", "--out=../made", "--name=a", "--workers=1")
  (here.parent / "made" / "a" / "1.0.0" / "prepared.json").unlink()
  for spec, where, expected in (
    ("tfds:a", "../made", "../made/a/1.0.0"),
    ("tfds:../made/a", "", "../made/a/1.0.0"),
    ("tfds:../made/a/1.0.0", "elsewhere", "../made/a/1.0.0"),
    ("tfds:a", str(here.parent / "made"), f"{here.parent}/made/a/1.0.0"),
  ):
    assert json.loads(open_prepared(spec, where).identity)[1][0] == expected


def test_recipes_and_plans(here, capsys):
  recipe = "model_name_or_path: org/model\nloss_type: simpo\ndataset_name: org/pairs\n"
  (here.parent / "simpo.yaml").write_text(recipe)
  given = ("--devices=1", "--pairs=640", "--out=x/../../mine.py")
  (here / "x").mkdir()
  command("simpo_jax.import_config", "../simpo.yaml", *given)
  assert (here.parent / "mine.py").is_file()
  assert "x/../../mine.py is written" in capsys.readouterr().out
  tiny = [f"--config.{name}={value}" for name, value in RUN.items()]
  command(
    "simpo_jax.plan",
    "--config=" + os.path.relpath(ROOT / "configs/m11.py"),
    *tiny,
    "--json=../plan.json",
  )
  assert json.loads((here.parent / "plan.json").read_text())


def test_a_demo(here, monkeypatch):
  ran = []
  monkeypatch.setattr(demo, "run_stage", lambda stage, folder, seed: ran.append(folder))
  with pytest.raises(UserError, match="holds 0 evaluation"):  # nothing has run
    demo.demo(pathlib.Path(brief(plain("../runs/demo"))), 0, here / "demo.svg")
  assert ran == [here.parent / "runs" / "demo"] * 2
  assert (here.parent / "runs" / "demo" / "data" / "fit.jsonl").is_file()
