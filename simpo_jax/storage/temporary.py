"""Atomic creation of files and folders: they are built under a temporary name, then renamed.

The name is random and is created exclusively, so that nothing that exists is overwritten, no
symlink is followed, and nothing of others is removed. The process that created it holds a lock on
it (flock): a leftover of a killed process is recognized by the missing lock, and is removed when
the next temporary file for the same target is created. Imports only the standard library.
"""

import contextlib
import fcntl
import os
import pathlib
import re
import secrets
import shutil
from collections.abc import Iterator
from typing import BinaryIO

_PREFIX_LENGTH = 40  # characters of the target's name, which may already have the maximum length


def unique_name(target: str) -> str:
  """Returns a temporary file name, made of the target's name and random digits."""
  return f".{target[:_PREFIX_LENGTH]}.{secrets.token_hex(8)}.tmp"


@contextlib.contextmanager
def atomic_write(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Yields a new binary file that replaces `path` on success and is removed on an exception.

  If `path` is a symlink, the link is replaced, not its target.
  """
  _remove_leftovers(path)
  while True:
    scratch = path.with_name(unique_name(path.name))
    file = open(scratch, "xb")  # follows no symlink; has the mode of any new file
    if _lock(scratch, file.fileno()):
      break
    file.close()
  with file:
    try:
      yield file
      file.flush()
      os.replace(scratch, path)
    except BaseException:
      with contextlib.suppress(OSError):
        scratch.unlink()
      raise


@contextlib.contextmanager
def folder_for(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a new folder next to `path`; it is removed on exit unless it was renamed."""
  _remove_leftovers(path)
  while True:
    scratch = path.with_name(unique_name(path.name))
    scratch.mkdir()
    try:
      opened = os.open(scratch, os.O_RDONLY)
    except FileNotFoundError:  # another process removed it as a leftover before it was locked
      continue
    if _lock(scratch, opened):
      break
    os.close(opened)
  try:
    yield scratch
  finally:
    shutil.rmtree(scratch, ignore_errors=True)
    os.close(opened)


def _lock(scratch: pathlib.Path, opened: int) -> bool:
  """Locks a new file or folder; False if another process has taken it for a leftover."""
  try:
    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:
    pass  # a file system without locks, where leftovers are not removed
  try:
    return os.path.samestat(os.fstat(opened), os.lstat(scratch))
  except FileNotFoundError:
    return False


def _remove_leftovers(path: pathlib.Path) -> None:
  """Removes temporary files that killed processes have left for a target."""
  name = re.compile(rf"\.{re.escape(path.name[:_PREFIX_LENGTH])}\.[0-9a-f]{{16}}\.tmp")
  with contextlib.suppress(OSError), os.scandir(path.parent) as found:
    for entry in [entry for entry in found if name.fullmatch(entry.name)]:
      with contextlib.suppress(OSError):
        _remove_if_unlocked(entry)


def _remove_if_unlocked(entry: os.DirEntry) -> None:
  folder = entry.is_dir(follow_symlinks=False)
  # NFS locks only files that are open for writing; folders cannot be opened so.
  flags = (os.O_RDONLY if folder else os.O_RDWR) | os.O_NOFOLLOW | os.O_NONBLOCK
  opened = os.open(entry.path, flags)
  try:
    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    shutil.rmtree(entry.path) if folder else os.unlink(entry.path)
  finally:
    os.close(opened)
