"""Local copies of data that lies in a bucket: fetched once, kept under the version they are of."""

import datetime
import hashlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from simpo_jax import storage
from simpo_jax.errors import UserError, one_line
from simpo_jax.storage import temporary
from simpo_jax.storage.paths import escapes_folder, plain


def cache_folder() -> pathlib.Path:
  """Where copies of data from buckets are kept; all of it may be removed at any time."""
  named = os.environ.get("SIMPO_JAX_CACHE")
  return plain(named or "~/.cache/simpo_jax")


def fetch(
  path: storage.Path,
  names: Sequence[str] = (),
  check: Callable[[pathlib.Path], None] = lambda copy: None,
) -> pathlib.Path:
  """A local copy of an object, or of some of a folder's; fetched unless it is there already.

  Args:
    path: of the object or the folder.
    names: of a folder's files; they come to lie in one folder.
    check: is shown a copy before it is kept; what it raises is raised.

  Raises:
    FileNotFoundError: it is not there.
    UserError: a name leads out of the folder, or the copy cannot be written.
  """
  for name in (path.name, *names):
    if name in ("", ".") or escapes_folder(path, name):
      raise UserError(
        f"{path} names {name!r}, which as a file would lie outside of it; get the data from "
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
  key = hashlib.sha256(str((str(path), versions)).encode()).hexdigest()[:20]
  copy = cache_folder() / key / path.name
  if copy.exists():
    return copy
  try:
    copy.parent.mkdir(parents=True, exist_ok=True)
    with temporary.folder_for(copy) as scratch:
      here = scratch / path.name
      if names:
        here.mkdir()
        fs.get([f"{path}/{name}" for name in names], [str(here / name) for name in names])
      else:
        fs.get_file(str(path), str(here))
      for name, info in infos.items():
        if (here / name).stat().st_size != info["size"]:
          raise OSError(f"{path}/{name} changed while it was fetched")
        _date(here / name, info)
      check(here)
      if not copy.exists():
        here.rename(copy)
  except OSError as e:
    if copy.exists():  # another process was faster
      return copy
    raise UserError(
      f"{path} could not be fetched into {cache_folder()} ({one_line(e)}); free space there, or "
      "name another folder with SIMPO_JAX_CACHE"
    ) from e
  return copy


def _version(info: dict[str, Any]) -> str:
  return str(next((info[k] for k in ("generation", "ETag", "etag", "mtime") if k in info), ""))


def _date(path: pathlib.Path, info: dict[str, Any]) -> None:
  """A copy is as old as what it is of, whenever it was fetched."""
  changed = info.get("mtime") or info.get("LastModified")
  if isinstance(changed, datetime.datetime):
    os.utime(path, (changed.timestamp(), changed.timestamp()))
