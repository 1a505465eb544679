"""The files a run leaves behind: config, run.json, metrics, samples; not its checkpoints.

Whole files are written beside their final name and renamed, so that a reader, or
a killed run, never sees half of one. Process 0 writes all but the samples.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from simpo_jax.config import flatten
from simpo_jax.errors import UserError

# Fields that may differ when a run goes on: they change no number of it, or only by rounding.
_FREE = ("checkpoint.", "watchdog.", "profile.", "log.", "mesh.", "train.max_bad_steps")
_SHOWN = 4  # fields listed in one message
_locks: dict[pathlib.Path, int] = {}  # open files, whose locks are held


def fresh_name(name: str) -> str:
  """A dated folder under `runs/` that is not there yet."""
  stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
  path = f"runs/{stamp}-{name}"
  number = 1
  while pathlib.Path(path).exists():
    number += 1
    path = f"runs/{stamp}-{name}-{number}"
  return path


def make_workdir(path: str, config: dict[str, Any], process: int = 0) -> pathlib.Path:
  """The run's folder: empty, or as an unfinished run left it.

  What an attempt without a checkpoint has left moves into `attempts/`, as it does with
  `checkpoint.resume` off. Process 0 alone does so: the others may come after its first files.

  Args:
    path: its name.
    config: of the run, as config.json has it.

  Raises:
    UserError: the folder cannot be made or written, holds a finished run or one of
      another config, or is in use.
  """
  folder = pathlib.Path(path).expanduser()
  if folder.is_file():
    raise UserError(f"--workdir={folder} is a file; choose a folder")
  try:
    folder.mkdir(parents=True, exist_ok=True)
    if process:
      return folder
    (folder / ".writable").write_text("")
    (folder / ".writable").unlink()
  except OSError as e:
    raise UserError(
      f"--workdir={folder} cannot be written ({e.strerror}); choose another folder"
    ) from e
  _lock(folder)
  if (folder / "run.json").exists():
    _check_before(folder, config)
    resume = config.get("checkpoint", {}).get("resume")
    if not (resume and any((folder / "checkpoints").glob("step_*[0-9]"))):
      _set_aside(folder)
  return folder


def unlock(folder: pathlib.Path) -> None:
  """Lets another run have the folder; else the end of this process does."""
  if (held := _locks.pop(folder.absolute(), None)) is not None:
    os.close(held)


def _lock(folder: pathlib.Path) -> None:
  """Keeps a second run out of the folder until `unlock`, or for as long as this process lives."""
  opened = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    os.close(opened)
    raise UserError(
      f"--workdir={folder} is in use by a run in progress; choose another folder"
    ) from None
  except OSError:
    pass  # a file system without locks
  _locks[folder.absolute()] = opened


def _check_same(folder: pathlib.Path) -> None:
  """Raises an OSError if the folder is another than the run began in, or gone."""
  held = _locks.get(folder.absolute())
  if held is not None and not os.path.samestat(os.fstat(held), os.stat(folder)):
    # A save in the background may have made it anew.
    raise FileNotFoundError(errno.ENOENT, "the folder has vanished, or another is in its place")


def _check_before(folder: pathlib.Path, config: dict[str, Any]) -> None:
  """Raises a UserError unless the folder holds an unfinished run of this config."""
  try:
    status = json.loads((folder / "run.json").read_text())["status"]
    before = flatten(json.loads((folder / "config.json").read_text()))
  except FileNotFoundError:
    return  # it was being set aside
  except (OSError, ValueError, KeyError, TypeError, AttributeError):
    before = status = None
  if status == "done":
    raise UserError(
      f"--workdir={folder} holds an earlier run that is finished; choose another folder or remove "
      "it"
    )
  now = flatten(json.loads(json.dumps(config)))
  differs = (
    []
    if before is None
    else [
      name
      for name in {**before, **now}
      if before.get(name) != now.get(name) and not name.startswith(_FREE)
    ]
  )
  if before is None or differs:
    listed = f" ({', '.join(differs[:_SHOWN])}{', ...' if len(differs) > _SHOWN else ''})"
    raise UserError(
      f"--workdir={folder} holds an earlier run of another config{listed if differs else ''}; "
      "choose another folder or remove it"
    )


def _set_aside(folder: pathlib.Path) -> None:
  attempts = folder / "attempts"
  attempts.mkdir(exist_ok=True)
  target = attempts / f"{len(list(attempts.iterdir())) + 1:04d}"
  target.mkdir()
  # run.json last: should this be killed, the next attempt goes on with it.
  for path in sorted(folder.iterdir(), key=lambda p: (p.name == "run.json", p.name)):
    if path.name != "attempts":
      path.rename(target / path.name)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file whole, or not at all."""
  _replace(path, json.dumps(value, indent=2, allow_nan=False, default=_plain) + "\n")


def write_rows(path: pathlib.Path, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
  """Writes a JSONL file whole, and returns its rows."""
  rows = list(rows)
  with _told(path):
    # Not `parents`: a workdir that has vanished must not come back empty.
    path.parent.parent.mkdir(exist_ok=True)
    path.parent.mkdir(exist_ok=True)
  _replace(
    path,
    "".join(
      json.dumps(r, ensure_ascii=False, allow_nan=False, default=_plain) + "\n" for r in rows
    ),
  )
  return rows


def append_metrics(folder: pathlib.Path, row: dict[str, Any]) -> None:
  """Appends one line to metrics.jsonl."""
  with _told(folder):
    _check_same(folder)
  with _told(folder), open(folder / "metrics.jsonl", "a") as f:
    f.write(json.dumps(row, allow_nan=False, default=_plain) + "\n")


def samples_folder(folder: pathlib.Path, step: int) -> pathlib.Path:
  """Where the generations after a step lie."""
  return folder / "samples" / f"step_{step:06d}"


def samples_file(folder: pathlib.Path, step: int, process: int, processes: int) -> pathlib.Path:
  """One process's samples of a step."""
  return samples_folder(folder, step) / f"host_{process:04d}_of_{processes:04d}.jsonl"


def evaluation_file(folder: pathlib.Path, step: int) -> pathlib.Path:
  """The held-out pairs one by one, as the evaluation after a step found them."""
  return folder / "evaluations" / f"step_{step:06d}" / "pairs.jsonl"


def _replace(path: pathlib.Path, text: str) -> None:
  temporary = path.with_name(path.name + ".tmp")
  with _told(path):
    temporary.write_text(text)
    os.replace(temporary, path)


@contextlib.contextmanager
def _told(path: pathlib.Path):
  """A full disk, or a folder that is gone or may not be written, as the user's error."""
  try:
    yield
  except OSError as e:
    raise UserError(
      f"{path} cannot be written ({e.strerror or e}); free space or mend the storage, then start "
      "the same command again: it goes on from the last checkpoint"
    ) from e


def _plain(value):
  if isinstance(value, np.generic):
    return value.item()
  if isinstance(value, np.ndarray):
    return value.tolist()
  if isinstance(value, pathlib.PurePath):
    return str(value)
  raise TypeError(f"{type(value).__name__} in a workdir file")
