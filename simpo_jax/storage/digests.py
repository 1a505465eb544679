"""Digests of files: what checkpoints are checked by."""

import base64
import concurrent.futures
import hashlib
from collections.abc import Iterable
from typing import Any

from simpo_jax import storage

_CHECKSUMS = {"md5": "md5Hash", "crc32c": "crc32c"}  # of Google's, by their kinds
_HASHERS = 4  # files hashed at once; hashlib lets go of Python's lock


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


def sha256(path: str | storage.Path) -> str:
  """Of a file's bytes, in hexadecimal."""
  return _hashed(storage.open_path(path, "data"), "sha256").hexdigest()


def _digest(path: storage.Path, info: dict[str, Any], like: str | None) -> str:
  said = {kind: f"{kind}:{info[f]}" for kind, f in _CHECKSUMS.items() if f in info}
  if like is None and said:
    return next(iter(said.values()))
  kind = like.partition(":")[0] if like and ":" in like else "sha256"
  if like and kind not in ("sha256", "md5"):
    return said.get(kind, like)
  if kind in said:
    return said[kind]
  digest = _hashed(path, kind)
  return digest.hexdigest() if kind == "sha256" else f"md5:{_base64(digest.digest())}"


def _hashed(path: storage.Path, kind: str) -> Any:
  file: Any = path.open("rb")
  with file:
    return hashlib.file_digest(file, kind)


def _base64(data: bytes) -> str:
  return base64.b64encode(data).decode()
