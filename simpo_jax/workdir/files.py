"""The files a run leaves behind: config, run.json, metrics, samples; not its checkpoints.

Whole files are written beside their final name and renamed, so that a reader, or
a killed run, never sees half of one. Process 0 writes all but the samples. In a bucket
an object is as whole, a lease stands for the lock, and metrics.jsonl is uploaded with
run.json, before every checkpoint and at the end.
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

from simpo_jax import storage
from simpo_jax.config import changed_fields, flatten
from simpo_jax.errors import UserError, one_line
from simpo_jax.settings import FIELDS
from simpo_jax.storage.bucket_lock import Held, Lease
from simpo_jax.storage.paths import brief, refuse_symlinks
from simpo_jax.workdir.contents import check_others, set_aside

_METRICS = "metrics.jsonl"
_SHOWN = 4  # fields listed in one message
_locks: dict[storage.Path, int | Lease] = {}  # open files, whose locks are held; leases


def fresh_name(name: str) -> str:
  """A dated folder under `runs/` that is not there yet."""
  stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
  path = f"runs/{stamp}-{name}"
  number = 1
  while pathlib.Path(path).exists():
    number += 1
    path = f"runs/{stamp}-{name}-{number}"
  return path


def make_workdir(
  path: str, config: dict[str, Any], process: int = 0, into_existing: bool = False
) -> storage.Path:
  """The run's folder: empty, or as an unfinished run left it.

  What an attempt without a checkpoint has left moves into `attempts/`, as it does with
  `checkpoint.resume` off; what no run writes stays where it is. Process 0 alone does so: the
  others may come after its first files.

  Args:
    path: its name.
    config: of the run, as config.json has it.
    into_existing: whether a folder may be taken that holds other things and no run.

  Raises:
    UserError: the folder cannot be made or written, holds a finished run, one of another
      config, links or other things, or is in use.
  """
  folder = open_workdir(path)
  try:
    if folder.is_file():
      raise UserError(f"--workdir={brief(folder)} is a file; choose a folder")
    if isinstance(folder, pathlib.Path):
      folder.mkdir(parents=True, exist_ok=True)
      refuse_symlinks(folder)
    if process:
      return folder
    _check_config_file(folder)
    check_others(folder, into_existing)
    storage.try_writing(folder)
    _lock(folder)
    if (folder / "run.json").exists():
      _check_before(folder, config)
      resume, saved = config.get("checkpoint", {}).get("resume"), folder / "checkpoints"
      if not (resume and any(map(storage.committed, saved.glob("step_*[0-9]")))):
        set_aside(folder)
  except storage.failures() as e:
    raise UserError(
      f"--workdir={brief(folder)} cannot be written ({_why(e)}); choose another folder"
    ) from e
  storage.forget(folder / _METRICS)
  return folder


def open_workdir(path: str) -> storage.Path:
  """The path of a workdir; see `storage.open_path`."""
  return storage.open_path(path, "--workdir", schemes=("gs",))


def unlock(folder: storage.Path) -> None:
  """Lets another run have the folder; else the end of this process does."""
  held = _locks.pop(folder, None)
  if isinstance(held, Lease):
    with contextlib.suppress(*storage.failures()):  # the run has ended, well or not
      held.check()
      storage.flush(folder / _METRICS)
    held.close()
  elif held is not None:
    os.close(held)


def _lock(folder: storage.Path) -> None:
  """Keeps a second run out of the folder until `unlock`, or for as long as this process lives."""
  if storage.is_remote(folder):
    try:
      _locks[folder] = Lease(folder / ".lock")
    except Held as e:
      raise UserError(_in_use(folder, f" ({e})")) from None
    return
  opened = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    os.close(opened)
    raise UserError(_in_use(folder)) from None
  except OSError:
    pass  # a file system without locks
  _locks[folder] = opened


def _in_use(folder: storage.Path, by: str = "") -> str:
  return f"--workdir={brief(folder)} is in use by a run in progress{by}; choose another folder"


def _check_same(folder: storage.Path) -> None:
  """Raises an OSError if the folder is another than the run began in, or gone."""
  held = _locks.get(folder)
  if isinstance(held, Lease):
    held.check()
  elif held is not None and not os.path.samestat(os.fstat(held), os.stat(folder)):
    # A save in the background may have made it anew.
    raise FileNotFoundError(errno.ENOENT, "the folder has vanished, or another is in its place")


def _check_config_file(folder: storage.Path) -> None:
  """Raises a UserError if a config.json is in the way that no run has written, such as a model's.

  It would be replaced, and the model's is gone then.
  """
  path = folder / "config.json"
  if (folder / "run.json").exists() or not path.exists():
    return
  try:
    foreign = "simpo" not in json.loads(path.read_text())
  except (ValueError, TypeError):
    foreign = True
  if foreign:
    raise UserError(
      f"--workdir={brief(folder)} holds a config.json that no run has written; choose "
      "another folder"
    )


def _check_before(folder: storage.Path, config: dict[str, Any]) -> None:
  """Raises a UserError unless the folder holds an unfinished run of this config."""
  try:
    status = json.loads((folder / "run.json").read_text())["status"]
    before = flatten(json.loads((folder / "config.json").read_text()))
  except FileNotFoundError:
    return  # it was being set aside
  except (*storage.failures(), ValueError, KeyError, TypeError, AttributeError):
    before = status = None
  if status == "done":
    raise UserError(
      f"--workdir={brief(folder)} holds an earlier run that is finished; choose another folder or "
      "remove it (a longer run that goes on from it: another folder, and "
      f"--config.checkpoint.init_from={brief(folder)} --config.checkpoint.init_what=all)"
    )
  now = flatten(json.loads(json.dumps(config)))
  differs = [] if before is None else changed_fields(before, now)
  free = {name for name, field in FIELDS.items() if field.resumable}
  differs = [name for name in differs if name not in free]
  if before is None or differs:
    listed = f" ({', '.join(differs[:_SHOWN])}{', ...' if len(differs) > _SHOWN else ''})"
    raise UserError(
      f"--workdir={brief(folder)} holds an earlier run of another config"
      f"{listed if differs else ''}; choose another folder or remove it"
    )


def write_json(path: storage.Path, value: Any) -> None:
  """Writes a JSON file whole, or not at all."""
  _replace(path, json.dumps(value, indent=2, allow_nan=False, default=_plain) + "\n")


def write_rows(path: storage.Path, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
  """Writes a JSONL file whole, and returns its rows."""
  rows = list(rows)
  if not storage.is_remote(path):
    with _told(path):
      # Not `parents`: a workdir that has vanished must not come back empty.
      path.parent.parent.mkdir(exist_ok=True)
      path.parent.mkdir(exist_ok=True)
  _replace(path, "".join(map(row_text, rows)))
  return rows


def row_text(row: dict[str, Any]) -> str:
  """A row as its line of a JSONL file."""
  return json.dumps(row, ensure_ascii=False, allow_nan=False, default=_plain) + "\n"


def append_metrics(folder: storage.Path, row: dict[str, Any]) -> None:
  """Appends one line to metrics.jsonl; in a bucket, uploaded later by `flush_metrics`."""
  with _told(folder):
    if not storage.is_remote(folder):
      _check_same(folder)
    storage.append(folder / _METRICS, json.dumps(row, allow_nan=False, default=_plain) + "\n")


def flush_metrics(folder: storage.Path, now: bool) -> None:
  """Uploads metrics.jsonl to a bucket; see `storage.flush`."""
  if storage.is_remote(folder):
    with _told(folder):
      _check_same(folder)
      storage.flush(folder / _METRICS, now)


def metrics_bytes(folder: storage.Path) -> int:
  """Of metrics.jsonl, all of which is then in its place."""
  with _told(folder):
    return storage.size(folder / _METRICS)


def cut_metrics(folder: storage.Path, length: int) -> None:
  """Leaves so many bytes of metrics.jsonl."""
  storage.truncate(folder / _METRICS, length)


def samples_folder(folder: storage.Path, step: int) -> storage.Path:
  """Where the generations after a step lie."""
  return folder / "samples" / f"step_{step:06d}"


def samples_file(folder: storage.Path, step: int, process: int, processes: int) -> storage.Path:
  """One process's samples of a step."""
  return samples_folder(folder, step) / f"host_{process:04d}_of_{processes:04d}.jsonl"


def evaluation_file(folder: storage.Path, step: int) -> storage.Path:
  """The held-out pairs one by one, as the evaluation after a step found them."""
  return folder / "evaluations" / f"step_{step:06d}" / "pairs.jsonl"


def _replace(path: storage.Path, text: str) -> None:
  with _told(path):
    storage.write(path, text)


@contextlib.contextmanager
def _told(path: storage.Path):
  """A full disk, or a folder that is gone or may not be written, as the user's error."""
  try:
    yield
  except storage.failures() as e:
    raise UserError(
      f"{path} cannot be written ({_why(e)}); free space or fix the storage, then start "
      "the same command again: it goes on from the last checkpoint"
    ) from e


def _why(error: Exception) -> str:
  return getattr(error, "strerror", None) or one_line(error)


def _plain(value: Any) -> Any:
  if isinstance(value, np.generic):
    return value.item()
  if isinstance(value, np.ndarray):
    return value.tolist()
  if isinstance(value, pathlib.PurePath):
    return str(value)
  raise TypeError(f"{type(value).__name__} in a workdir file")
