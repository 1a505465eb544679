"""Whose files lie in a workdir: a run's, by their names, are moved and cut back, no others."""

import json
import os
import pathlib

import pytest

from simpo_jax.errors import UserError
from simpo_jax.workdir.contents import RUN_FILES
from simpo_jax.workdir.files import make_workdir
from support.commands import command
from support.hosts import TINY, flags
from support.run_outcome import assert_same, outcome, record
from support.runs_in_process import Lost, go, lose

pytestmark = pytest.mark.usefixtures("one_executable")

THEIRS = {
  ".git/HEAD": "ref: refs/heads/main\n",
  ".git/objects/ab/cd": "x",
  "README.md": "# mine",
  "src/model.py": "pass",
  "notes.txt": "to do",
}


def put(folder, files):
  for name, text in files.items():
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
  return folder


def tree(folder):
  """{name: content} of all files."""
  files = (p for p in folder.rglob("*") if p.is_file())
  return {str(p.relative_to(folder)): p.read_bytes() for p in files}


def kept(folder, files):
  return {name: (folder / name).read_text() for name in files} == files


# --- folders that hold other things ----------------------------------------------------------


def test_a_checkout_is_refused_as_a_workdir(tmp_path, monkeypatch):
  """With `--workdir=.`, of which a restart once moved everything away, .git included."""
  before = tree(put(tmp_path, THEIRS))
  monkeypatch.chdir(tmp_path)
  with pytest.raises(
    UserError,
    match=r"--workdir=\. holds \.git, README\.md, notes\.txt, src, which no run has "
    r"written; choose a fresh folder, or pass --into_existing",
  ):
    command("simpo_jax.main", *flags(".", TINY))
  assert tree(tmp_path) == before
  assert sorted(os.listdir(tmp_path)) == [".git", "README.md", "notes.txt", "src"]


def test_many_things_are_not_all_named(tmp_path):
  put(tmp_path, {f"{n}.txt": "" for n in range(9)})
  with pytest.raises(UserError, match=r"holds 0\.txt, 1\.txt, .*5\.txt, \.\.\., which no run has"):
    make_workdir(str(tmp_path), {})


@pytest.mark.parametrize(
  "name", ["samples/mine.txt", "checkpoints/best.pt", "attempts/notes.txt", "export/notes.txt"]
)
def test_what_a_run_would_take_for_its_own_is_refused_whatever_is_said(tmp_path, name):
  put(tmp_path, {name: "mine", "more.txt": ""})
  top = pathlib.Path(name).parts[0]
  with pytest.raises(
    UserError, match=f"holds {top}, which no run has written; choose a fresh"
  ) as e:
    make_workdir(str(tmp_path), {}, into_existing=True)
  assert "into_existing" not in str(e.value)
  assert kept(tmp_path, {name: "mine"})


@pytest.mark.parametrize(
  "name",
  [
    *(".DS_Store", ".gitkeep", ".gitignore", "lost+found/x", ".nfs0001", ".writable.1a.tmp"),
    *("simpo-1234.log", "launch_logs/0.log"),  # of launch/slurm.py and launch/tpu_vm.py
  ],
)
def test_what_systems_and_launchers_leave_is_nothing(tmp_path, name):
  put(tmp_path, {name: ""})
  assert make_workdir(str(tmp_path), {}) == tmp_path
  assert (tmp_path / name).exists()


@pytest.mark.parametrize(
  "files",
  [
    {"config.json": '{"simpo": {}}'},  # killed right after it
    {"attempts/0001/run.json": "{}"},  # killed while that was set aside
    {"checkpoints/step_000002/simpo_jax.json": "{}"},  # copied from elsewhere, to go on
  ],
)
def test_whatever_a_run_has_begun_is_a_run(tmp_path, files):
  put(tmp_path, {**files, "notes.txt": "mine"})
  assert make_workdir(str(tmp_path), {"simpo": {}}) == tmp_path


def test_the_command_takes_a_folder_when_told(tmp_path):
  put(tmp_path, THEIRS)
  settings = {**TINY, "train.steps": 1, "generate.at_steps": "()"}
  command("simpo_jax.main", *flags(tmp_path, settings), "--into_existing")
  assert record(tmp_path)["status"] == "done" and kept(tmp_path, THEIRS)


# --- starting again --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, one_executable):  # noqa: F811
  folder = tmp_path_factory.mktemp("undisturbed") / "run"
  go(folder)
  return outcome(folder)


@pytest.mark.parametrize("resume", [True, False])
def test_a_restart_moves_a_runs_own_files_only(tmp_path, undisturbed, before_launch, resume):  # noqa: F811
  folder = put(tmp_path, THEIRS)
  before_launch(1, lose)
  with pytest.raises(Lost):
    go(folder, True)
  written = set(os.listdir(folder)) - {name.split("/")[0] for name in THEIRS}
  go(folder, checkpoint__resume=resume)  # there is a run now
  assert kept(folder, THEIRS)
  assert_same(outcome(folder), undisturbed)
  moved = set(os.listdir(folder / "attempts" / "0001"))
  assert {"config.json", "run.json", "metrics.jsonl"} <= moved
  assert moved == {name for name in written if not name.endswith(".tmp")}
  assert sorted(os.listdir(folder / "attempts")) == ["0001"]


def test_what_a_resume_cuts_back_is_a_runs_own(tmp_path, undisturbed, before_launch):  # noqa: F811
  folder = tmp_path / "run"
  before_launch(7, lose)  # in the evaluation after step 4, whose generation is there
  with pytest.raises(Lost):
    go(folder)
  assert (folder / "samples" / "step_000004" / "summary.json").exists()
  theirs = {
    "notes.txt": "mine",
    "samples/step_000004/best.txt": "mine",
    "samples/step_by_step.md": "mine",
    "samples/step_9/a.jsonl": "mine",
    "evaluations/step_000099x/pairs.jsonl": "mine",
  }
  put(folder, theirs)
  put(folder, {"samples/step_000005/host_0000_of_0001.jsonl": "of a run that went further"})
  go(folder)
  assert [r["step"] for r in record(folder)["resumes"]] == [4]
  assert kept(folder, theirs)
  assert not (folder / "samples" / "step_000005").exists()
  for name in theirs:
    (folder / name).unlink()
  for name in ("samples/step_9", "evaluations/step_000099x"):
    (folder / name).rmdir()
  assert_same(outcome(folder), undisturbed)


def test_numbers_of_attempts_go_on(tmp_path):
  put(tmp_path, {"attempts/0003/run.json": "{}", "attempts/notes.txt": "mine"})
  put(tmp_path, {"config.json": '{"simpo": {}}', "run.json": '{"status": "failed"}'})
  make_workdir(str(tmp_path), {"simpo": {}})
  assert sorted(os.listdir(tmp_path / "attempts")) == ["0003", "0004", "notes.txt"]


@pytest.mark.slow
def test_the_list_has_all_that_a_run_writes(tmp_path):
  folder = tmp_path / "run"
  go(
    folder,
    train__steps=2,
    generate__at_steps=(2,),
    profile__steps=(1, 1),
    export__at_end=True,
    evaluate__at_start=True,
    train__lora_rank=2,
  )
  found = set(os.listdir(folder))
  assert {"adapter", "export", "profile", "samples", "evaluations", "tensorboard"} <= found
  assert found <= set(RUN_FILES)
  assert json.loads((folder / "run.json").read_text())["compiles"] >= 1


@pytest.mark.parametrize("mistake", [{"train__batch_size": 500}, {"checkpoint__init_from": "none"}])
def test_a_start_that_was_refused_is_not_in_the_way(tmp_path, mistake):
  folder = tmp_path / "run"
  with pytest.raises(UserError):
    go(folder, **mistake)
  assert not folder.exists() or os.listdir(folder) == []
