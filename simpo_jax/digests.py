"""Digests of files: what checkpoints are checked by."""

import base64
import concurrent.futures
import contextlib
import hashlib
import os
import pathlib
import threading
from collections.abc import Iterable
from typing import Any

from simpo_jax import storage

_CHECKSUMS = {"md5": "md5Hash", "crc32c": "crc32c"}  # of Google's, by their kinds
_HASHERS = 4  # files hashed at once; hashlib lets go of Python's lock
_FOLLOWED = 1 << 20  # bytes from which on a file is read as soon as it is there
_LOOK_EVERY = 0.05  # seconds
_UNFINISHED = ".__lock"  # in the names of what TensorStore has not yet put in place


def of_files(
  folder: storage.Path, names: Iterable[str], like: dict[str, str] | None = None
) -> dict[str, str]:
  """Of files of a folder, by name.

  A local file's is its SHA-256; an object's is what its bucket says, "md5:..." or
  "crc32c:...", so that nothing is read back.

  Args:
    like: digests to compare with: those returned are of the same kinds. One that cannot be
      had here (crc32c of a local file) is that of `like`.
  """
  names, like = list(names), like or {}
  said = storage.infos(folder) if storage.is_remote(folder) else {}
  with concurrent.futures.ThreadPoolExecutor(_HASHERS) as pool:
    found = pool.map(lambda n: _digest(folder / n, said.get(n, {}), like.get(n)), names)
    return dict(zip(names, found, strict=True))


class Follower:
  """Takes the digests of large files while others are still being written; local ones.

  A file is read once it is in place, while the system has it in memory, which the system may
  then use for the next one: where memory that was never used is slow to get (virtual
  machines), a write of gigabytes is several times cheaper in reused memory.

  Args:
    parent: folder in which the files' own folders are, or will be.
    pattern: of the names of those folders.
  """

  def __init__(self, parent: pathlib.Path, pattern: str):
    self._parent, self._pattern = parent, pattern
    self._found: dict[pathlib.Path, tuple[tuple, str]] = {}
    self._ending = threading.Event()
    self._thread = threading.Thread(target=self._follow, name="digests", daemon=True)
    self._thread.start()

  def close(self) -> None:
    """Ends the thread."""
    self._ending.set()
    self._thread.join()

  def finish(self, folder: pathlib.Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of files that are all written, by name; those not yet taken are taken now."""
    self.close()
    known = {name: self._found.get(folder / name) for name in names}
    taken = {
      name: found[1] for name, found in known.items() if found and found[0] == _state(folder / name)
    }
    return taken | of_files(folder, [n for n in known if n not in taken])

  def _follow(self) -> None:
    while not self._ending.wait(_LOOK_EVERY):
      # What is gone again is none of those that `finish` is asked for.
      with contextlib.suppress(OSError):
        for path in self._parent.glob(f"{self._pattern}/**/*"):
          self._take(path)

  def _take(self, path: pathlib.Path) -> None:
    if path in self._found or _UNFINISHED in path.name or self._ending.is_set():
      return
    state = _state(path)
    if state[0] < _FOLLOWED or not path.is_file():
      return
    with path.open("rb") as f:
      self._found[path] = state, hashlib.file_digest(f, "sha256").hexdigest()
      if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _state(path: pathlib.Path) -> tuple:
  status = path.stat()
  return status.st_size, status.st_mtime_ns, status.st_ino


def _digest(path: storage.Path, info: dict[str, Any], like: str | None) -> str:
  said = {kind: f"{kind}:{info[f]}" for kind, f in _CHECKSUMS.items() if f in info}
  if like is None and said:
    return next(iter(said.values()))
  kind = like.partition(":")[0] if like and ":" in like else "sha256"
  if kind not in ("sha256", "md5"):
    return said.get(kind, like)
  if kind in said:
    return said[kind]
  with path.open("rb") as f:
    digest = hashlib.file_digest(f, kind)
  return digest.hexdigest() if kind == "sha256" else f"md5:{_base64(digest.digest())}"


def _base64(data: bytes) -> str:
  return base64.b64encode(data).decode()
