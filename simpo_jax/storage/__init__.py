"""Files on local disks and in buckets (gs://, s3://), for those who should not have to care which.

A local path is a `pathlib.Path`, a place in a bucket an `epath.Path`; what the two have in
common is called on the path itself. Here is the rest: what buckets cannot do as file
systems do. They know no rename and no append, and folders are only beginnings of names;
but an object is always written as a whole, and seen by everyone at once.
"""

import os
import pathlib
import shutil
import sys
import time
from collections.abc import Sequence
from typing import Any

from etils import epath

from simpo_jax.errors import UserError
from simpo_jax.storage import temporary
from simpo_jax.storage.paths import escapes_folder, plain

Path = pathlib.Path | epath.Path

_EXTRAS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # package, and the extra that has it
_PATTERN = "*?[]"  # what fsspec, asked to remove a name, would match others with
_COMMITTED = "commit_success.txt"  # Orbax's last file of a checkpoint, where it cannot rename
_BUFFER_EVERY = 5.0  # seconds between uploads of a file that grows, at least
_BUFFER_SHARE = 20  # and so many times what the last one took
_SERVICES = (  # what clients of buckets raise beside OSError: module, name
  ("gcsfs.retry", "HttpError"),
  ("aiohttp", "ClientError"),
  ("google.auth.exceptions", "GoogleAuthError"),
  ("botocore.exceptions", "BotoCoreError"),
)


class _Growing:
  """What is to be in an object that grows, and when it is uploaded again."""

  def __init__(self, content: bytes):
    self.content, self.due, self.changed = bytearray(content), 0.0, False


_growing: dict[str, _Growing] = {}


def is_remote(path: str | Path) -> bool:
  """Whether a path, or a name of one, is of a bucket."""
  return "://" in str(path)


def open_path(name: str | Path, field: str, schemes: Sequence[str] = ("gs", "s3")) -> Path:
  """The path of that name; a local one is absolute and plain (`paths.plain`).

  Args:
    name: as the user wrote it.
    field: where, for messages.
    schemes: of buckets that may be named here.

  Raises:
    UserError: another scheme, no bucket, a pattern, or the package for it is not installed.
  """
  if not is_remote(name):
    return plain(name)
  scheme, _, rest = str(name).partition("://")
  takes = "a local folder or " + " or ".join(f"{s}://BUCKET/..." for s in schemes)
  if scheme not in schemes:
    why = (
      "Orbax writes checkpoints to local disks and gs:// only; s3:// is for data"
      if scheme == "s3"
      else f"{scheme}:// is not known here"
    )
    raise UserError(f"{field}={name}: {why}; name {takes}")
  if not rest.partition("/")[0]:
    raise UserError(f"{field}={name} names no bucket; name {takes}")
  if any(c in rest for c in _PATTERN):
    raise UserError(f"{field}={name}: a place in a bucket may not have any of {_PATTERN} in it")
  _filesystem(scheme, f"{field}={name}")
  return epath.Path(name)


def _filesystem(scheme: str, what: str = "") -> Any:
  """fsspec's file system; what it is set to here holds for etils and Orbax, too."""
  # As without TensorFlow: its own way into buckets has other errors.
  os.environ.setdefault("EPATH_USE_TF", "false")
  package, extra = _EXTRAS[scheme]
  try:
    import fsspec
    import fsspec.config

    # Others write and remove: TensorStore, other hosts, earlier runs.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
    return fsspec.filesystem(scheme)
  except ImportError as e:
    raise UserError(
      f"{what}: {scheme}:// needs the package {package}; pip install 'simpo-jax[{extra}]'"
    ) from e


def filesystem(path: str | Path) -> Any:
  """fsspec's file system for a path in a bucket."""
  return _filesystem(str(path).partition("://")[0])


def failures() -> tuple[type[Exception], ...]:
  """The errors of storage, to be caught: OSError, and those of buckets' services."""
  found = [getattr(sys.modules[m], name) for m, name in _SERVICES if m in sys.modules]
  return (OSError, *found)


def names(folder: Path) -> list[str]:
  """Of what lies in a folder, in order; none if there is no such folder."""
  try:
    if not is_remote(folder):
      return sorted(os.listdir(folder))
    own = str(folder).partition("://")[2].strip("/")
    found = {name.rstrip("/") for name in filesystem(folder).ls(str(folder), detail=False)}
    # Consoles leave an object of the folder's own name to mark it.
    return sorted(name.rpartition("/")[2] for name in found if name != own)
  except (FileNotFoundError, NotADirectoryError):
    return []


def sizes(folder: Path) -> dict[str, int]:
  """Bytes of every file in a folder and below, by its name relative to it."""
  if isinstance(folder, pathlib.Path):
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in found}
  return {name: info["size"] for name, info in infos(folder).items()}


def infos(folder: Path) -> dict[str, dict[str, Any]]:
  """What a bucket says of every object in a folder and below, by its name relative to it.

  Raises:
    UserError: a name is none of a file below a folder, as "../x": objects may have any.
  """
  base = str(folder).partition("://")[2].rstrip("/") + "/"
  found = filesystem(folder).find(str(folder), detail=True)
  inside = {
    name.removeprefix(base): info
    for name, info in sorted(found.items(), key=lambda item: item[0].split("/"))
    if name.startswith(base) and not name.endswith("/")
  }
  if bad := next((name for name in inside if escapes_folder(folder, name)), None):
    raise UserError(
      f"{folder} has an object named {bad!r}, which as a file would lie outside of it; remove the "
      "object, or use data of somebody you trust; nothing was fetched"
    )
  return inside


def write(path: Path, data: str | bytes) -> None:
  """Writes a file whole, or not at all."""
  data = data.encode() if isinstance(data, str) else data
  if not isinstance(path, pathlib.Path):
    filesystem(path).pipe_file(str(path), data)
    return
  with temporary.replacing(path) as file:
    file.write(data)


def try_writing(folder: Path) -> None:
  """Raises what writing into a folder would raise; nothing stays there."""
  probe = folder / temporary.name_for("writable")
  write(probe, "")
  probe.unlink()


def append(path: Path, text: str) -> None:
  """Adds to the end of a file; to an object with the next `flush`."""
  if not is_remote(path):
    with open(path, "a", opener=_no_symlink) as f:
      f.write(text)
    return
  growing = _grown(path)
  growing.content += text.encode()
  growing.changed = True


def _no_symlink(path: str, flags: int) -> int:
  return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def flush(path: Path, now: bool = True) -> None:
  """Uploads what was appended to an object, as a whole.

  Args:
    now: else only if the last time is some seconds ago, and more the larger it is.
  """
  growing = _growing.get(str(path))
  if growing is None or not growing.changed or not (now or time.monotonic() >= growing.due):
    return
  start = time.monotonic()
  write(path, bytes(growing.content))
  took = time.monotonic() - start
  growing.due, growing.changed = start + max(_BUFFER_EVERY, _BUFFER_SHARE * took), False


def size(path: Path) -> int:
  """Bytes of a file, what was appended included and from now on there; 0 if it is not there."""
  if not isinstance(path, pathlib.Path):
    flush(path)
    return len(_grown(path).content)
  return path.stat().st_size if path.exists() else 0


def truncate(path: Path, length: int) -> None:
  """Cuts a file after so many bytes, if it is longer."""
  if size(path) <= length:
    return
  if is_remote(path):
    growing = _grown(path)
    del growing.content[length:]
    growing.changed = True
    flush(path)
  else:
    with open(path, "r+b", opener=_no_symlink) as f:
      f.truncate(length)


def forget(path: Path) -> None:
  """Drops what is known of an object that grows: another may write it from now on."""
  _growing.pop(str(path), None)


def _grown(path: Path) -> _Growing:
  if str(path) not in _growing:
    try:
      content = filesystem(path).cat_file(str(path))
    except FileNotFoundError:
      content = b""
    _growing[str(path)] = _Growing(content)
  return _growing[str(path)]


def remove_tree(folder: Path) -> None:
  """Removes a folder and all in it, if it is there."""
  if isinstance(folder, pathlib.Path):
    if folder.exists():
      shutil.rmtree(folder)
    return
  # What says that it is complete goes first: half of it must not pass for the whole.
  for name in (_COMMITTED, "dataset_info.json"):
    (folder / name).unlink(missing_ok=True)
  folder.rmtree(missing_ok=True)


def move(source: Path, target: Path) -> None:
  """Renames a file or a folder; in a bucket, file by file."""
  if not is_remote(source):
    source.rename(target)
    return
  fs = filesystem(source)
  found = [""] if fs.isfile(str(source)) else [f"/{name}" for name in infos(source)]
  for name in found:
    fs.cp_file(f"{source}{name}", f"{target}{name}")
    fs.rm_file(f"{source}{name}")


def upload(folder: pathlib.Path, target: Path, last: str = "") -> None:
  """Copies all files of a local folder into a bucket, the one called `last` in the end."""
  fs, found = filesystem(target), list(sizes(folder))
  first = [name for name in found if name != last]
  fs.put([f"{folder}/{name}" for name in first], [f"{target}/{name}" for name in first])
  if last:
    fs.put_file(f"{folder}/{last}", f"{target}/{last}")


def committed(checkpoint: Path) -> bool:
  """Whether a checkpoint's folder is there as a whole."""
  return not is_remote(checkpoint) or (checkpoint / _COMMITTED).exists()
