"""A dataset to prepare: its folder, and a lock on its name against other processes."""

import contextlib
import fcntl
import os
from typing import Any, NamedTuple

from simpo_jax import storage
from simpo_jax.errors import UserError, one_line
from simpo_jax.storage.bucket_lock import Held, Lease

COMMIT_FILE = "dataset_info.json"  # a folder without it is not a dataset


class Target(NamedTuple):
  """The dataset to prepare."""

  out: storage.Path  # TFDS's data_dir
  name: str
  version: str
  source: dict[str, Any]  # identifies the source; recorded in prepared.json

  @property
  def folder(self) -> storage.Path:
    return self.out / self.name / self.version

  @property
  def exists(self) -> bool:
    """Whether the dataset exists already."""
    return (self.folder / (COMMIT_FILE if storage.is_remote(self.out) else "")).exists()


@contextlib.contextmanager
def exclusive(target: Target):
  """Locks the dataset's name against other processes; raises a UserError if it is locked."""
  if storage.is_remote(target.out):
    try:
      lease = Lease(target.out / f".{target.name}.lock")
    except Held:
      raise UserError(_being_prepared(target)) from None
    except storage.failures() as error:
      raise UserError(
        f"--out={target.out} cannot be written ({one_line(error)}); choose another folder"
      ) from error
    with contextlib.closing(lease):
      yield
    return
  try:
    target.out.mkdir(parents=True, exist_ok=True)
    lock = target.out / f".{target.name}.lock"
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
  except OSError as error:
    raise UserError(
      f"--out={target.out} cannot be written ({error.strerror}); choose another folder"
    ) from error
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(_being_prepared(target)) from None
    yield
  finally:
    os.close(handle)


def _being_prepared(target: Target) -> str:
  return f"{target.name} is being prepared in {target.out} right now; wait for it to end"
