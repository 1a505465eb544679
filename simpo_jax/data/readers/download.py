"""A local cache of data in buckets and on the web; its keys include the version of each file."""

import datetime
import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from simpo_jax import storage
from simpo_jax.errors import UserError, one_line
from simpo_jax.storage import temporary
from simpo_jax.storage.digests import sha256
from simpo_jax.storage.paths import escapes_folder, plain


def cache_folder() -> pathlib.Path:
  """Returns the cache folder, SIMPO_JAX_CACHE or ~/.cache/simpo_jax; it may be deleted any time."""
  return plain(os.environ.get("SIMPO_JAX_CACHE") or "~/.cache/simpo_jax")


def fetch(
  path: storage.Path,
  names: Sequence[str] = (),
  check: Callable[[pathlib.Path], None] = lambda copy: None,
) -> pathlib.Path:
  """Returns a local copy of an object, or of files of a folder; downloads it if it is not cached.

  Args:
    path: the object or the folder, in a bucket.
    names: files of the folder to fetch; empty: `path` is an object.
    check: called with a new copy before it is added to the cache; its exceptions propagate.

  Raises:
    FileNotFoundError: the object or a named file does not exist.
    IsADirectoryError: `path` is a folder and no names are given.
    UserError: a name leads out of the folder, or the copy cannot be written.
  """
  for name in (path.name, *names):
    if name in ("", ".") or escapes_folder(path, name):
      raise UserError(
        f"{path} names {name!r}, which as a file would be outside of it; get the data from "
        "somebody you trust; nothing was fetched"
      )
  fs = storage.filesystem(path)
  listed = storage.infos(path) if names else {"": fs.info(str(path))}
  infos = {name: listed[name] for name in names or [""] if name in listed}
  if missing := [name for name in names if name not in infos]:
    raise FileNotFoundError(f"{path}/{missing[0]} is not there")
  if infos.get("", {}).get("type") == "directory":
    raise IsADirectoryError(f"{path} is a folder")
  versions = [(name, info["size"], _version(info)) for name, info in infos.items()]

  def get(scratch: pathlib.Path) -> None:
    here = scratch / path.name
    if names:
      here.mkdir()
      fs.get([f"{path}/{name}" for name in names], [str(here / name) for name in names])
    else:
      fs.get_file(str(path), str(here))
    for name, info in infos.items():
      if (here / name).stat().st_size != info["size"]:
        raise OSError(f"{path}/{name} changed while it was fetched")
      set_mtime(here / name, info.get("mtime") or info.get("LastModified"))
    check(here)

  return cached((str(path), versions), path.name, str(path), get)


def cached(
  key: tuple[Any, ...] | None,
  name: str,
  origin: str,
  get: Callable[[pathlib.Path], None],
) -> pathlib.Path:
  """Returns the cached copy of a file or folder; gets it first if it is not cached.

  Args:
    key: identifies the version; None: that is not known, and the file is always fetched.
    name: of the copy.
    origin: where it comes from, for messages.
    get: writes the copy under its name into an empty folder; its exceptions propagate, but for
      OSError.

  Raises:
    UserError: the copy cannot be fetched or written.
  """
  copy = cache_folder() / _hashed(key) / name
  if key is not None and copy.exists():
    return copy
  try:
    copy.parent.mkdir(parents=True, exist_ok=True)
    with temporary.folder_for(copy) as scratch:
      get(scratch)
      if key is None:
        copy = cache_folder() / _hashed((origin, sha256(scratch / name))) / name
        copy.parent.mkdir(exist_ok=True)
      if not copy.exists():
        (scratch / name).rename(copy)
  except OSError as e:
    if key is not None and copy.exists():  # another process has fetched it
      return copy
    raise UserError(
      f"{origin} could not be fetched into {cache_folder()} ({one_line(e)}); free space there, or "
      "name another folder with SIMPO_JAX_CACHE"
    ) from e
  return copy


def _hashed(key: tuple[Any, ...] | None) -> str:
  return hashlib.sha256(str(key).encode()).hexdigest()[:20]


def _version(info: dict[str, Any]) -> str:
  return str(next((info[k] for k in ("generation", "ETag", "etag", "mtime") if k in info), ""))


def set_mtime(path: pathlib.Path, changed: Any) -> None:
  """Sets the modification time of a copy to that of the original, if that is a datetime."""
  if isinstance(changed, datetime.datetime):
    os.utime(path, (changed.timestamp(), changed.timestamp()))
