"""Files and folders under a name of their own until they are what they are to be.

The name is random and what has it is made anew, so that nothing that lies there already, a
link least of all, is written to, followed or removed. Its maker holds a lock on it: what a
killed process has left is known by the lock's absence, and goes when the next is made for the
same target. Imports nothing but the standard library.
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

_SHOWN = 40  # characters of the target's name in it, which may be as long as a name can be


def name_for(target: str) -> str:
  """A name that nothing has."""
  return f".{target[:_SHOWN]}.{secrets.token_hex(8)}.tmp"


@contextlib.contextmanager
def replacing(path: pathlib.Path) -> Iterator[BinaryIO]:
  """Yields a new file, which takes the path's name when all is written; else it is removed.

  A link that has the name is replaced itself, not what it leads to.
  """
  _clear(path)
  while True:
    own = path.with_name(name_for(path.name))
    file = open(own, "xb")  # never through a link, and with the mode of any new file
    if _locked(own, file.fileno()):
      break
    file.close()
  with file:
    try:
      yield file
      file.flush()
      os.replace(own, path)
    except BaseException:
      with contextlib.suppress(OSError):
        own.unlink()
      raise


@contextlib.contextmanager
def folder_for(path: pathlib.Path) -> Iterator[pathlib.Path]:
  """Yields a new folder beside `path`; it is removed in the end, unless it was renamed."""
  _clear(path)
  while True:
    own = path.with_name(name_for(path.name))
    own.mkdir()
    try:
      opened = os.open(own, os.O_RDONLY)
    except FileNotFoundError:  # taken for a killed process's before it was locked
      continue
    if _locked(own, opened):
      break
    os.close(opened)
  try:
    yield own
  finally:
    shutil.rmtree(own, ignore_errors=True)
    os.close(opened)


def _locked(own: pathlib.Path, opened: int) -> bool:
  """Locks what was just made; False if another process was faster, and took it for a dead one's."""
  try:
    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return False
  except OSError:
    pass  # a file system without locks: what is left there stays
  try:
    return os.path.samestat(os.fstat(opened), os.lstat(own))
  except FileNotFoundError:
    return False


def _clear(path: pathlib.Path) -> None:
  """Removes what killed processes have left for a path."""
  name = re.compile(rf"\.{re.escape(path.name[:_SHOWN])}\.[0-9a-f]{{16}}\.tmp")
  with contextlib.suppress(OSError), os.scandir(path.parent) as found:
    for entry in [entry for entry in found if name.fullmatch(entry.name)]:
      with contextlib.suppress(OSError):
        _remove_if_dead(entry)


def _remove_if_dead(entry: os.DirEntry) -> None:
  folder = entry.is_dir(follow_symlinks=False)
  # NFS locks only what is open for writing, which folders cannot be.
  flags = (os.O_RDONLY if folder else os.O_RDWR) | os.O_NOFOLLOW | os.O_NONBLOCK
  opened = os.open(entry.path, flags)
  try:
    fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    shutil.rmtree(entry.path) if folder else os.unlink(entry.path)
  finally:
    os.close(opened)
