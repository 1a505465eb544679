"""What lies in a folder decides neither where we write nor what we remove or publish elsewhere."""

import json
import os
import pathlib
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading

import pytest

from simpo_jax import storage
from simpo_jax.errors import UserError
from simpo_jax.export.runs import check_export_at_end, export_run
from simpo_jax.models.weights import open_model
from simpo_jax.report.page import write_report
from simpo_jax.sample.__main__ import open_output
from simpo_jax.settings import ExportSettings, Settings
from simpo_jax.storage import temporary
from simpo_jax.storage.paths import escapes_folder
from simpo_jax.workdir import files as workdir
from support.example_run import make
from support.hf_models import load, save_source
from support.saved_runs import save

SECRET = "the owner's own\n"


def _is_temporary(name):
  return re.fullmatch(r"\..+\.[0-9a-f]{16}\.tmp", name, re.DOTALL) is not None


@pytest.fixture
def victim(tmp_path):
  """A file and a folder elsewhere, which stay as they are."""
  folder = tmp_path / "elsewhere"
  (folder / "step_000009").mkdir(parents=True)
  for path in (folder / "file", folder / "step_000009" / "file"):
    path.write_text(SECRET)
  yield folder
  assert tree(folder) == {"file": SECRET, "step_000009": None, "step_000009/file": SECRET}


def tree(folder):
  """Contents by name; None for folders."""
  return {
    p.relative_to(folder).as_posix(): None if p.is_dir() else p.read_text()
    for p in folder.rglob("*")
  }


def here(folder):
  return sorted(os.listdir(folder))


# --- new files -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ("run.json.tmp", ".run.json.tmp", "run.tmp", "run.json"))
def test_a_file_is_never_written_through_a_link(tmp_path, victim, name):
  folder = tmp_path / "run"
  folder.mkdir()
  (folder / name).symlink_to(victim / "file")
  workdir.write_json(folder / "run.json", {"a": 1})
  assert json.loads((folder / "run.json").read_text()) == {"a": 1}
  assert not (folder / "run.json").is_symlink()
  assert here(folder) == sorted({name, "run.json"})


def test_a_file_grows_and_shrinks_through_no_link(tmp_path, victim):
  link = tmp_path / "metrics.jsonl"
  link.symlink_to(victim / "file")
  with pytest.raises(OSError):
    storage.append(link, "row\n")
  with pytest.raises(OSError):
    storage.truncate(link, 1)
  link.unlink()
  link.symlink_to(victim / "new")
  with pytest.raises(OSError):
    storage.append(link, "row\n")


@pytest.mark.parametrize("mask", (0o022, 0o077, 0o002))
def test_a_new_file_has_the_mode_of_any(tmp_path, mask):
  before = os.umask(mask)
  try:
    storage.write(tmp_path / "whole", "x")
    storage.append(tmp_path / "grows", "x")
    with temporary.folder_for(tmp_path / "folder") as folder:
      assert stat.S_IMODE(folder.stat().st_mode) == 0o777 & ~mask
  finally:
    os.umask(before)
  assert {stat.S_IMODE(p.stat().st_mode) for p in tmp_path.iterdir()} == {0o666 & ~mask}


def test_what_fails_leaves_nothing_and_the_old_file(tmp_path):
  (tmp_path / "a").write_text("old")
  with pytest.raises(ZeroDivisionError), temporary.atomic_write(tmp_path / "a") as file:
    file.write(b"new")
    assert (tmp_path / "a").read_text() == "old" and len(here(tmp_path)) == 2
    raise ZeroDivisionError
  with pytest.raises(ZeroDivisionError), temporary.folder_for(tmp_path / "a") as folder:
    (folder / "part").write_text("new")
    raise ZeroDivisionError
  assert tree(tmp_path) == {"a": "old"}


def test_what_a_killed_process_left_goes_and_what_lives_or_is_no_such_stays(tmp_path):
  """Killed for good, by SIGKILL, with a file and a folder open."""
  code = (
    "import os, pathlib, signal; from simpo_jax.storage import temporary\n"
    f"path = pathlib.Path({str(tmp_path)!r}) / 'a'\n"
    "with temporary.atomic_write(path) as file, temporary.folder_for(path) as folder:\n"
    "  file.write(b'half'); (folder / 'part').touch(); os.kill(os.getpid(), signal.SIGKILL)\n"
  )
  assert subprocess.run([sys.executable, "-c", code]).returncode == -9
  left = here(tmp_path)
  assert len(left) == 2 and all(map(_is_temporary, left))
  foreign = ["a.tmp", ".a.tmp", ".b.0123456789abcdef.tmp", ".a.partial", "a.0123456789abcdef.tmp"]
  for name in foreign:
    (tmp_path / name).write_text("mine")
  with (
    temporary.atomic_write(tmp_path / "a") as one,
    temporary.folder_for(tmp_path / "a") as folder,
  ):
    one.write(b"one")
    with temporary.atomic_write(tmp_path / "a") as other:
      other.write(b"other")
    assert (tmp_path / "a").read_text() == "other" and folder.is_dir()
  assert (tmp_path / "a").read_text() == "one"
  assert here(tmp_path) == sorted([*foreign, "a"])


def test_a_link_named_like_a_leftover_is_left_alone(tmp_path, victim):
  for name, target in (("a", "file"), ("b", "step_000009")):
    (tmp_path / f".x.{name * 16}.tmp").symlink_to(victim / target)
  storage.write(tmp_path / "x", "whole")
  assert (tmp_path / "x").read_text() == "whole"


def test_answers_so_far_are_kept_and_written_over_nothing(tmp_path, victim):
  (tmp_path / "b.partial").symlink_to(victim / "file")
  (tmp_path / "b.partial-2").write_text("of an earlier start")
  with pytest.raises(SystemExit), open_output(str(tmp_path / "b")) as write:
    write("1\n")
    raise KeyboardInterrupt
  assert (tmp_path / "b.partial-2").read_text() == "of an earlier start"
  assert (tmp_path / "b.partial-3").read_text() == "1\n"


# --- workdirs ------------------------------------------------------------------------------


@pytest.fixture
def unfinished(tmp_path):
  """A workdir as a run might have left it, by somebody."""
  folder = make(tmp_path / "run", status="running")
  for name in ("checkpoints/step_000002", "tensorboard", "tracking", "attempts/0001/samples"):
    (folder / name).mkdir(parents=True)
  return folder


LINKS = (
  "config.json", "run.json", "metrics.jsonl", "report.html", "failure.json", "samples",
  "checkpoints", "evaluations", "adapter", "tensorboard", "wandb", "profile", "attempts",
  "samples/step_000002", "checkpoints/step_000002", "tensorboard/events.out.tfevents.1.a",
  "tracking/wandb.log", ".writable", "anything",
)  # fmt: skip


@pytest.mark.parametrize("process", (0, 1))
@pytest.mark.parametrize("name", LINKS)
def test_a_workdir_with_links_is_refused(unfinished, victim, name, process):
  path = unfinished / name
  shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
  for target in (victim, victim / "file", "nowhere", name, "run.json"):
    path.symlink_to(target)
    before = here(unfinished)
    with pytest.raises(UserError, match=rf"holds a link, {name} to .*move the whole workdir"):
      workdir.make_workdir(str(unfinished), {}, process)
    assert here(unfinished) == before and os.readlink(path) == str(target)
    path.unlink()


def test_what_has_no_end_is_refused_in_a_workdir(unfinished):
  (unfinished / "run.json").unlink()
  os.mkfifo(unfinished / "run.json")
  with pytest.raises(UserError, match="holds run.json, which is neither a file nor a folder"):
    workdir.make_workdir(str(unfinished), {})


def test_a_workdir_behind_a_link_and_the_links_of_wandb(tmp_path):
  disk = tmp_path / "disk"
  (disk / "run" / "attempts" / "0001").mkdir(parents=True)
  (disk / "run" / "wandb" / "run-1").mkdir(parents=True)
  (disk / "run" / "wandb" / "latest-run").symlink_to("run-1")
  (tmp_path / "data").symlink_to(disk)
  (tmp_path / "mine").symlink_to(disk / "run")
  for path in (tmp_path / "data" / "run", tmp_path / "mine"):
    workdir.unlock(workdir.make_workdir(str(path), {}))
  assert here(disk / "run") == ["attempts", "wandb"]


def test_a_users_own_files_are_not_taken_for_a_try(tmp_path):
  for name in (".writable", ".shared", "run.json.tmp"):
    (tmp_path / name).write_text("mine")
  before = tree(tmp_path)
  workdir.unlock(workdir.make_workdir(str(tmp_path), {}))
  assert tree(tmp_path) == before


# --- reports -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
  return make(tmp_path_factory.mktemp("report") / "made")


def command(*args, **options):
  return subprocess.run(
    [sys.executable, "-m", "simpo_jax.report", *map(str, args)],
    stderr=subprocess.PIPE,
    text=True,
    timeout=60,
    **options,
  )


@pytest.mark.parametrize("name", (".report.html.tmp", "report.html", "samples/step_000009"))
def test_the_report_of_somebodys_run(made, tmp_path, victim, name):
  shutil.copytree(made, tmp_path / "run")
  (tmp_path / "run" / name).symlink_to(victim / "file")
  done = command(tmp_path / "run", stdout=subprocess.PIPE)
  assert done.returncode == 2 and f"holds a link, {name} to" in done.stderr
  assert not done.stdout


def test_a_report_goes_through_a_pipe(made, tmp_path):
  pipe, read = tmp_path / "pipe", []
  os.mkfifo(pipe)
  thread = threading.Thread(target=lambda: read.append(pipe.read_bytes()), daemon=True)
  thread.start()
  write_report([made], pipe)
  thread.join(60)
  assert read[0].startswith(b"<!doctype html>") and b"</html>" in read[0]
  assert stat.S_ISFIFO(pipe.lstat().st_mode) and here(tmp_path) == ["pipe"]


@pytest.mark.skipif(not os.path.exists("/dev/stdout"), reason="a system without /dev/stdout")
def test_a_report_on_the_standard_output(made, tmp_path):
  """To a pipe, a new file and the end of an old one: the page and nothing else."""
  done = command(made, "--out=/dev/stdout", stdout=subprocess.PIPE)
  assert done.returncode == 0, done.stderr
  assert done.stdout.startswith("<!doctype html>") and done.stdout.rstrip().endswith("</html>")
  (tmp_path / "old").write_text("a line\n")
  for name, mode, start in (("new", "w", "<!doctype"), ("old", "a", "a line\n<!doctype")):
    with open(tmp_path / name, mode) as file:
      assert command(made, "--out=/dev/stdout", stdout=file).returncode == 0
    text = (tmp_path / name).read_text()
    assert text.startswith(start) and text.rstrip().endswith("</html>")
  assert os.readlink("/dev/stdout") == "/proc/self/fd/1" or sys.platform != "linux"


def test_a_report_replaces_no_folder_link_or_socket(made, tmp_path, victim, monkeypatch):
  monkeypatch.chdir(tmp_path)  # a socket's path may not be long
  (tmp_path / "link").symlink_to(victim / "file")
  (tmp_path / "folder").symlink_to(victim)
  (tmp_path / "dangling").symlink_to(victim / "new")
  with socket.socket(socket.AF_UNIX) as server:
    server.bind("socket")
    for name, says in (
      ("link", "is a link; name the file itself"),
      ("dangling", "is a link; name the file itself"),
      ("folder", "is a folder; name a file in it"),
      ("elsewhere", "is a folder; name a file in it"),
      ("socket", "is neither a file nor a pipe"),
    ):
      before = (tmp_path / name).lstat()
      with pytest.raises(UserError, match=says):
        write_report([made], pathlib.Path(name))
      assert os.path.samestat(before, (tmp_path / name).lstat())


# --- exports -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory):
  return save_source(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def run(source, tmp_path_factory):
  return save(tmp_path_factory.mktemp("run"), source, load(source)[1])


@pytest.mark.parametrize(
  "name",
  (
    "LICENSE", "NOTICE.txt", "USE_POLICY.md", "chat_template.jinja", "vocab.txt",
    "generation_config.json", "additional_chat_templates/a.jinja",
  ),
)  # fmt: skip
def test_an_export_publishes_no_file_from_elsewhere(run, source, tmp_path, victim, name):
  model = tmp_path / "model"
  shutil.copytree(source, model)
  secret = victim / "file"
  if name == "generation_config.json":
    secret = tmp_path / "credentials.json"
    secret.write_text('{"key": "private"}')
  if "/" in name:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.jinja").write_text(SECRET)
    (model / "additional_chat_templates").symlink_to(tmp_path / "outside")
  else:
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to(secret)
  out = tmp_path / "out"
  with pytest.raises(UserError, match=f"{name} is a link out of its folder, and an export would"):
    export_run(run, out, source=str(model), force=True)
  assert not out.exists() and not [n for n in here(tmp_path) if _is_temporary(n)]
  config = Settings(export=ExportSettings(at_end=True))
  with pytest.raises(UserError, match="is a link out of its folder"):
    check_export_at_end(config, tmp_path / "workdir", True, open_model(str(model)))


def test_links_within_a_model_and_of_the_hubs_cache_are_followed(run, source, tmp_path):
  cache = tmp_path / "models--a--b"
  snapshot, blobs = cache / "snapshots" / "0123", cache / "blobs"
  snapshot.mkdir(parents=True)
  blobs.mkdir()
  for number, path in enumerate(sorted(source.iterdir())):
    shutil.copy(path, blobs / f"{number:040x}")
    (snapshot / path.name).symlink_to(f"../../blobs/{number:040x}")
  (snapshot / "NOTICE").symlink_to("LICENSE.txt")
  export_run(run, tmp_path / "out", source=str(snapshot))
  for name in ("LICENSE.txt", "NOTICE"):
    assert (tmp_path / "out" / name).read_text() == "Be kind."
    assert not (tmp_path / "out" / name).is_symlink()
  tokenizer = (tmp_path / "out" / "tokenizer.json").read_bytes()
  assert tokenizer == (source / "tokenizer.json").read_bytes()


def test_an_export_removes_nothing_beside_it(run, tmp_path, victim):
  for name in ("out.partial", "out.replaced"):
    (tmp_path / name).mkdir()
    (tmp_path / name / "thesis.txt").write_text("mine")
  for _ in range(2):  # the second replaces the first
    export_run(run, tmp_path / "out")
    assert here(tmp_path) == ["elsewhere", "out", "out.partial", "out.replaced"]
  for name in ("out.partial", "out.replaced"):
    assert tree(tmp_path / name) == {"thesis.txt": "mine"}
  (tmp_path / "link").symlink_to(victim)
  with pytest.raises(UserError, match="link is a link; name the folder that it leads to"):
    export_run(run, tmp_path / "link")


def test_an_export_that_cannot_take_its_place_leaves_the_one_before(run, tmp_path, monkeypatch):
  out = tmp_path / "out"
  export_run(run, out)
  before, rename = {p.name: p.read_bytes() for p in out.iterdir()}, pathlib.Path.rename

  def fails(self, target):
    if _is_temporary(self.name) and target == out:
      raise OSError(5, "Input/output error")
    return rename(self, target)

  monkeypatch.setattr(pathlib.Path, "rename", fails)
  with pytest.raises(UserError, match="cannot be written .*Input/output error"):
    export_run(run, out, options={"dtype": "bfloat16"})
  assert {p.name: p.read_bytes() for p in out.iterdir()} == before and here(tmp_path) == ["out"]


# --- loops ---------------------------------------------------------------------------------


def test_a_looped_link_leads_out_of_every_folder(tmp_path):
  """Whatever the Python: 3.13's `resolve` raises nothing for one."""
  folder = tmp_path / "in"
  folder.mkdir()
  (folder / "own").write_text("")
  (folder / "self").symlink_to("self")
  (folder / "ping").symlink_to("pong")
  (folder / "pong").symlink_to("ping")
  (folder / "to").symlink_to("self")
  (tmp_path / "loop").symlink_to("loop")
  (folder / "outer").symlink_to(tmp_path / "loop")
  names = ("self", "self/x", "ping", "pong", "to", "to/x", "outer")
  assert [escapes_folder(folder, name) for name in names] == [True] * len(names)
  assert not escapes_folder(folder, "own") and not escapes_folder(folder, "absent")
