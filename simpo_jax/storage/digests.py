"""Digests of files, with which checkpoints and prepared datasets are verified."""

import base64
import concurrent.futures
import hashlib
from collections.abc import Iterable
from typing import Any

from simpo_jax import storage

_BUCKET_CHECKSUMS = {"md5": "md5Hash", "crc32c": "crc32c"}  # fields of Cloud Storage metadata
_HASH_THREADS = 4  # hashlib releases the GIL


def of_files(
  folder: storage.Path, names: Iterable[str], like: dict[str, str] | None = None
) -> dict[str, str]:
  """Returns {name: digest} for files of a folder.

  The digest of a local file is its SHA-256 in hexadecimal. That of an object is the checksum in
  the bucket's metadata, "md5:..." or "crc32c:...", so that nothing is downloaded.

  Args:
    like: digests to compare with; the returned ones use the same algorithms. Where that is
      impossible (crc32c of a local file), the digest of `like` itself is returned.
  """
  names, like = list(names), like or {}
  reported = storage.infos(folder) if storage.is_remote(folder) else {}
  with concurrent.futures.ThreadPoolExecutor(_HASH_THREADS) as pool:
    found = pool.map(lambda n: _digest(folder / n, reported.get(n, {}), like.get(n)), names)
    return dict(zip(names, found, strict=True))


def sha256(path: str | storage.Path) -> str:
  """Returns the SHA-256 of a file's bytes, in hexadecimal."""
  return _file_digest(storage.open_path(path, "data"), "sha256").hexdigest()


def _digest(path: storage.Path, info: dict[str, Any], like: str | None) -> str:
  reported = {kind: f"{kind}:{info[f]}" for kind, f in _BUCKET_CHECKSUMS.items() if f in info}
  if like is None and reported:
    return next(iter(reported.values()))
  kind = like.partition(":")[0] if like and ":" in like else "sha256"
  if like and kind not in ("sha256", "md5"):
    return reported.get(kind, like)
  if kind in reported:
    return reported[kind]
  digest = _file_digest(path, kind)
  return digest.hexdigest() if kind == "sha256" else f"md5:{_base64(digest.digest())}"


def _file_digest(path: storage.Path, kind: str) -> Any:
  file: Any = path.open("rb")
  with file:
    return hashlib.file_digest(file, kind)


def _base64(data: bytes) -> str:
  return base64.b64encode(data).decode()
