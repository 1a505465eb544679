"""The files a run leaves behind: config, run.json, metrics, samples.

Whole files are written beside their final name and renamed, so that a reader, or
a killed run, never sees half of one. Process 0 writes all but the samples.
"""

import datetime
import fcntl
import json
import os
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from simpo_jax.errors import UserError


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
  """The run's folder, empty but for earlier attempts at the same run.

  What an attempt that did not finish has left moves into `attempts/`. Process 0 alone
  does so: the others may come after its first files.

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
    _set_aside(folder, config)
  return folder


def _lock(folder: pathlib.Path) -> None:
  """Keeps a second run out of the folder for as long as this process lives."""
  try:
    # Never closed: the process's end unlocks it.
    fcntl.flock(os.open(folder, os.O_RDONLY), fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    raise UserError(
      f"--workdir={folder} is in use by a run in progress; choose another folder"
    ) from None
  except OSError:
    pass  # a file system without locks


def _set_aside(folder: pathlib.Path, config: dict[str, Any]) -> None:
  try:
    before = json.loads((folder / "config.json").read_text())
    status = json.loads((folder / "run.json").read_text())["status"]
  except (OSError, ValueError, KeyError, TypeError):
    before = status = None
  if status in (None, "done") or before != json.loads(json.dumps(config)):
    what = "that is finished" if status == "done" else "of another config"
    raise UserError(
      f"--workdir={folder} holds an earlier run {what}; choose another folder or remove it"
    )
  attempts = folder / "attempts"
  attempts.mkdir(exist_ok=True)
  target = attempts / f"{len(list(attempts.iterdir())) + 1:04d}"
  target.mkdir()
  for path in folder.iterdir():
    if path.name != "attempts":
      path.rename(target / path.name)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes a JSON file whole, or not at all."""
  _replace(path, json.dumps(value, indent=2, allow_nan=False, default=_plain) + "\n")


def write_rows(path: pathlib.Path, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
  """Writes a JSONL file whole, and returns its rows."""
  rows = list(rows)
  path.parent.mkdir(parents=True, exist_ok=True)
  _replace(
    path,
    "".join(
      json.dumps(r, ensure_ascii=False, allow_nan=False, default=_plain) + "\n" for r in rows
    ),
  )
  return rows


def append_metrics(folder: pathlib.Path, row: dict[str, Any]) -> None:
  """Appends one line to metrics.jsonl."""
  with open(folder / "metrics.jsonl", "a") as f:
    f.write(json.dumps(row, allow_nan=False, default=_plain) + "\n")


def samples_folder(folder: pathlib.Path, step: int) -> pathlib.Path:
  """Where the generations after a step lie."""
  return folder / "samples" / f"step_{step:06d}"


def samples_file(folder: pathlib.Path, step: int, process: int, processes: int) -> pathlib.Path:
  """One process's samples of a step."""
  return samples_folder(folder, step) / f"host_{process:04d}_of_{processes:04d}.jsonl"


def _replace(path: pathlib.Path, text: str) -> None:
  temporary = path.with_name(path.name + ".tmp")
  temporary.write_text(text)
  os.replace(temporary, path)


def _plain(value):
  if isinstance(value, np.generic):
    return value.item()
  if isinstance(value, np.ndarray):
    return value.tolist()
  if isinstance(value, pathlib.PurePath):
    return str(value)
  raise TypeError(f"{type(value).__name__} in a workdir file")
