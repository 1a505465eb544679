"""The files of a workdir: config, run.json, metrics, samples; not the checkpoints.

Files are written under a temporary name and renamed, so that readers never see an incomplete
file, even if the run is killed. Process 0 writes all but the samples. In a bucket, where uploads
are atomic, a lease replaces the lock, and metrics.jsonl is uploaded with run.json, before every
checkpoint and at the end.
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
from simpo_jax.config import differing_fields, flatten
from simpo_jax.errors import UserError, one_line
from simpo_jax.settings import FIELDS
from simpo_jax.storage.bucket_lock import Held, Lease
from simpo_jax.storage.paths import brief, refuse_symlinks
from simpo_jax.workdir.contents import check_foreign_files, set_aside

_METRICS = "metrics.jsonl"
_SHOWN = 4  # fields listed in one message
_locks: dict[storage.Path, int | Lease] = {}  # file descriptors that hold a lock, or leases


def fresh_name(name: str) -> str:
  """Returns a dated folder name under `runs/` that does not exist yet."""
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
  """Creates, checks and locks the workdir.

  The files of an unfinished run are kept if it is resumed; else, without a checkpoint or with
  `checkpoint.resume` off, they move to `attempts/`. Other files stay. Only process 0 checks,
  locks and moves: by the time the other processes get here, it may have written files.

  Args:
    path: local or in a bucket.
    config: of the run, as in config.json.
    process: index of this process.
    into_existing: whether to accept a folder with files that no run has written.

  Raises:
    UserError: the folder cannot be written, is in use, or has a finished run, a run of another
      config, symbolic links or files that no run has written.
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
    check_foreign_files(folder, into_existing)
    storage.try_writing(folder)
    _lock(folder)
    if (folder / "run.json").exists():
      _check_earlier_run(folder, config)
      resume, saved = config.get("checkpoint", {}).get("resume"), folder / "checkpoints"
      if not (resume and any(map(storage.committed, saved.glob("step_*[0-9]")))):
        set_aside(folder)
  except storage.failures() as e:
    raise UserError(
      f"--workdir={brief(folder)} cannot be written ({_reason(e)}); choose another folder"
    ) from e
  storage.forget(folder / _METRICS)
  return folder


def open_workdir(path: str) -> storage.Path:
  """Returns the path of a workdir; see `storage.open_path`."""
  return storage.open_path(path, "--workdir", schemes=("gs",))


def unlock(folder: storage.Path) -> None:
  """Releases the lock of the workdir, as the end of the process also does."""
  held = _locks.pop(folder, None)
  if isinstance(held, Lease):
    with contextlib.suppress(*storage.failures()):  # the run has ended either way
      held.check()
      storage.flush(folder / _METRICS)
    held.close()
  elif held is not None:
    os.close(held)


def _lock(folder: storage.Path) -> None:
  """Locks the folder against other runs, until `unlock` or the end of this process."""
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
    pass  # the file system does not support locks
  _locks[folder] = opened


def _in_use(folder: storage.Path, by: str = "") -> str:
  return f"--workdir={brief(folder)} is in use by a run in progress{by}; choose another folder"


def _check_not_replaced(folder: storage.Path) -> None:
  """Raises an OSError if the folder was removed or replaced since the run locked it."""
  held = _locks.get(folder)
  if isinstance(held, Lease):
    held.check()
  elif held is not None and not os.path.samestat(os.fstat(held), os.stat(folder)):
    # A background save may have recreated it.
    raise FileNotFoundError(errno.ENOENT, "the folder has vanished, or another is in its place")


def _check_config_file(folder: storage.Path) -> None:
  """Raises a UserError if the folder has a config.json of something else, such as a model.

  The run would overwrite it.
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


def _check_earlier_run(folder: storage.Path, config: dict[str, Any]) -> None:
  """Raises a UserError unless the folder holds an unfinished run of this config."""
  try:
    status = json.loads((folder / "run.json").read_text())["status"]
    before = flatten(json.loads((folder / "config.json").read_text()))
  except FileNotFoundError:
    return  # its files were being moved to `attempts/`
  except (*storage.failures(), ValueError, KeyError, TypeError, AttributeError):
    before = status = None
  if status == "done":
    raise UserError(
      f"--workdir={brief(folder)} holds an earlier run that is finished; choose another folder or "
      "remove it (to continue it with more steps: another folder, and "
      f"--config.checkpoint.init_from={brief(folder)} --config.checkpoint.init_what=all)"
    )
  now = flatten(json.loads(json.dumps(config)))
  differs = [] if before is None else differing_fields(before, now)
  may_change = {name for name, field in FIELDS.items() if field.resumable}
  differs = [name for name in differs if name not in may_change]
  if before is None or differs:
    listed = f" ({', '.join(differs[:_SHOWN])}{', ...' if len(differs) > _SHOWN else ''})"
    raise UserError(
      f"--workdir={brief(folder)} holds an earlier run of another config"
      f"{listed if differs else ''}; choose another folder or remove it"
    )


def write_json(path: storage.Path, value: Any) -> None:
  """Writes a JSON file atomically."""
  _replace(path, json.dumps(value, indent=2, allow_nan=False, default=_json_default) + "\n")


def write_rows(path: storage.Path, rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
  """Writes a JSONL file atomically, and returns its rows."""
  rows = list(rows)
  if not storage.is_remote(path):
    with _write_errors_as_user_errors(path):
      # Not with `parents`, which would recreate a workdir that was removed.
      path.parent.parent.mkdir(exist_ok=True)
      path.parent.mkdir(exist_ok=True)
  _replace(path, "".join(map(row_text, rows)))
  return rows


def row_text(row: dict[str, Any]) -> str:
  """Formats a row as a line of a JSONL file."""
  return json.dumps(row, ensure_ascii=False, allow_nan=False, default=_json_default) + "\n"


def append_metrics(folder: storage.Path, row: dict[str, Any]) -> None:
  """Appends one line to metrics.jsonl; in a bucket, uploaded later by `flush_metrics`."""
  with _write_errors_as_user_errors(folder):
    if not storage.is_remote(folder):
      _check_not_replaced(folder)
    storage.append(
      folder / _METRICS, json.dumps(row, allow_nan=False, default=_json_default) + "\n"
    )


def flush_metrics(folder: storage.Path, now: bool) -> None:
  """Uploads metrics.jsonl to a bucket; see `storage.flush`."""
  if storage.is_remote(folder):
    with _write_errors_as_user_errors(folder):
      _check_not_replaced(folder)
      storage.flush(folder / _METRICS, now)


def metrics_bytes(folder: storage.Path) -> int:
  """Flushes metrics.jsonl and returns its size in bytes."""
  with _write_errors_as_user_errors(folder):
    return storage.size(folder / _METRICS)


def truncate_metrics(folder: storage.Path, length: int) -> None:
  """Truncates metrics.jsonl to `length` bytes."""
  storage.truncate(folder / _METRICS, length)


def samples_folder(folder: storage.Path, step: int) -> storage.Path:
  """The folder of the samples generated after a step."""
  return folder / "samples" / f"step_{step:06d}"


def samples_file(folder: storage.Path, step: int, process: int, processes: int) -> storage.Path:
  """The file of one process's samples after a step."""
  return samples_folder(folder, step) / f"host_{process:04d}_of_{processes:04d}.jsonl"


def evaluation_file(folder: storage.Path, step: int) -> storage.Path:
  """The file of the metrics of each held-out pair, from the evaluation after a step."""
  return folder / "evaluations" / f"step_{step:06d}" / "pairs.jsonl"


def _replace(path: storage.Path, text: str) -> None:
  with _write_errors_as_user_errors(path):
    storage.write(path, text)


@contextlib.contextmanager
def _write_errors_as_user_errors(path: storage.Path):
  """Turns failures of the storage, such as a full disk, into UserErrors."""
  try:
    yield
  except storage.failures() as e:
    raise UserError(
      f"{path} cannot be written ({_reason(e)}); free space or fix the storage, then start "
      "the same command again: it resumes from the last checkpoint"
    ) from e


def _reason(error: Exception) -> str:
  return getattr(error, "strerror", None) or one_line(error)


def _json_default(value: Any) -> Any:
  if isinstance(value, np.generic):
    return value.item()
  if isinstance(value, np.ndarray):
    return value.tolist()
  if isinstance(value, pathlib.PurePath):
    return str(value)
  raise TypeError(f"{type(value).__name__} in a workdir file")
