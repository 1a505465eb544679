"""File operations that work alike on local disks and in buckets (gs://, s3://).

A local path is a `pathlib.Path`, a path in a bucket an `epath.Path`. Methods that both have are
called on the path itself; this module has the operations for which object storage differs from a
file system: it has no rename and no append, and a folder is only a prefix of object names. Writing
an object is atomic, and the new version is visible to all readers at once.
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

_EXTRAS = {"gs": ("gcsfs", "gcs"), "s3": ("s3fs", "s3")}  # scheme: (package, pip extra)
_GLOB_CHARACTERS = "*?[]"  # fsspec expands these even when it removes a single object
_COMMIT_MARKER = "commit_success.txt"  # Orbax writes it last, where it cannot rename
_UPLOAD_SECONDS = 5.0  # minimum seconds between uploads of an object that is appended to,
_UPLOAD_FACTOR = 20  # and at least this many times the duration of its last upload
_SERVICE_ERRORS = (  # (module, name): errors of bucket clients that are not OSErrors
  ("gcsfs.retry", "HttpError"),
  ("aiohttp", "ClientError"),
  ("google.auth.exceptions", "GoogleAuthError"),
  ("botocore.exceptions", "BotoCoreError"),
)


class _AppendBuffer:
  """Contents of an object that is appended to, and when the next upload is due."""

  def __init__(self, content: bytes):
    self.content, self.due, self.changed = bytearray(content), 0.0, False


_append_buffers: dict[str, _AppendBuffer] = {}


def is_remote(path: str | Path) -> bool:
  """Whether a path is in a bucket."""
  return "://" in str(path)


def open_path(name: str | Path, field: str, schemes: Sequence[str] = ("gs", "s3")) -> Path:
  """Returns the path of that name; local paths are absolute and normalized (`paths.plain`).

  Args:
    name: the path as the user wrote it.
    field: the flag or config field, for error messages.
    schemes: URL schemes that are accepted here.

  Raises:
    UserError: the scheme is not accepted, its package is not installed, the bucket is missing,
      or the path contains glob characters.
  """
  if not is_remote(name):
    return plain(name)
  scheme, _, rest = str(name).partition("://")
  accepted = "a local folder or " + " or ".join(f"{s}://BUCKET/..." for s in schemes)
  if scheme not in schemes:
    reason = (
      "Orbax writes checkpoints to local disks and gs:// only; s3:// is for data"
      if scheme == "s3"
      else f"{scheme}:// is not known here"
    )
    raise UserError(f"{field}={name}: {reason}; name {accepted}")
  if not rest.partition("/")[0]:
    raise UserError(f"{field}={name} names no bucket; name {accepted}")
  if any(c in rest for c in _GLOB_CHARACTERS):
    raise UserError(
      f"{field}={name}: a path in a bucket must not contain any of {_GLOB_CHARACTERS}; rename it"
    )
  _filesystem(scheme, f"{field}={name}")
  return epath.Path(name)


def _filesystem(scheme: str, context: str = "") -> Any:
  """fsspec's file system, with settings that etils and Orbax share."""
  # etils would otherwise use tf.io.gfile where TensorFlow is installed, which raises other errors.
  os.environ.setdefault("EPATH_USE_TF", "false")
  package, extra = _EXTRAS[scheme]
  try:
    import fsspec
    import fsspec.config

    # A cached listing would miss what TensorStore and other hosts write or remove.
    fsspec.config.conf.setdefault(scheme, {})["use_listings_cache"] = False
    return fsspec.filesystem(scheme)
  except ImportError as e:
    raise UserError(
      f"{context}: {scheme}:// needs the package {package}; pip install 'simpo-jax[{extra}]'"
    ) from e


def filesystem(path: str | Path) -> Any:
  """Returns fsspec's file system for a path in a bucket."""
  return _filesystem(str(path).partition("://")[0])


def failures() -> tuple[type[Exception], ...]:
  """Returns the exceptions to catch around I/O: OSError and those of the bucket clients in use."""
  found = [getattr(sys.modules[m], name) for m, name in _SERVICE_ERRORS if m in sys.modules]
  return (OSError, *found)


def names(folder: Path) -> list[str]:
  """Returns the sorted names of a folder's entries; empty if there is no such folder."""
  try:
    if not is_remote(folder):
      return sorted(os.listdir(folder))
    marker = str(folder).partition("://")[2].strip("/")
    found = {name.rstrip("/") for name in filesystem(folder).ls(str(folder), detail=False)}
    # Web consoles create an empty object with the folder's name to represent it.
    return sorted(name.rpartition("/")[2] for name in found if name != marker)
  except (FileNotFoundError, NotADirectoryError):
    return []


def sizes(folder: Path) -> dict[str, int]:
  """Returns {path relative to the folder: bytes} of all files in it, recursively."""
  if isinstance(folder, pathlib.Path):
    found = sorted(p for p in folder.rglob("*") if p.is_file())
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in found}
  return {name: info["size"] for name, info in infos(folder).items()}


def infos(folder: Path) -> dict[str, dict[str, Any]]:
  """Returns {path relative to the folder: fsspec's info} of all objects in it, recursively.

  Raises:
    UserError: an object has a name such as "../x", which as a file would escape the folder.
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
      f"{folder} has an object named {bad!r}, which as a file would be outside of it; remove the "
      "object, or use data from somebody you trust; nothing was fetched"
    )
  return inside


def write(path: Path, data: str | bytes) -> None:
  """Writes a file atomically; text as UTF-8."""
  data = data.encode() if isinstance(data, str) else data
  if not isinstance(path, pathlib.Path):
    filesystem(path).pipe_file(str(path), data)
    return
  with temporary.atomic_write(path) as file:
    file.write(data)


def try_writing(folder: Path) -> None:
  """Writes and removes a small file in a folder, to raise the error that saving would raise."""
  probe = folder / temporary.unique_name("writable")
  write(probe, "")
  probe.unlink()


def append(path: Path, text: str) -> None:
  """Appends to a file. Objects are buffered in memory until the next `flush`."""
  if not is_remote(path):
    with open(path, "a", opener=_no_symlink) as f:
      f.write(text)
    return
  buffer = _buffer_of(path)
  buffer.content += text.encode()
  buffer.changed = True


def _no_symlink(path: str, flags: int) -> int:
  return os.open(path, flags | os.O_NOFOLLOW, 0o666)


def flush(path: Path, now: bool = True) -> None:
  """Uploads an object that was appended to, in full; does nothing for local files.

  Args:
    now: False: skip it while the last upload is recent; the interval grows with its duration.
  """
  buffer = _append_buffers.get(str(path))
  if buffer is None or not buffer.changed or not (now or time.monotonic() >= buffer.due):
    return
  start = time.monotonic()
  write(path, bytes(buffer.content))
  elapsed = time.monotonic() - start
  buffer.due, buffer.changed = start + max(_UPLOAD_SECONDS, _UPLOAD_FACTOR * elapsed), False


def size(path: Path) -> int:
  """Returns the bytes of a file, after a `flush` of what was appended; 0 if it does not exist."""
  if not isinstance(path, pathlib.Path):
    flush(path)
    return len(_buffer_of(path).content)
  return path.stat().st_size if path.exists() else 0


def truncate(path: Path, length: int) -> None:
  """Truncates a file to `length` bytes if it is longer."""
  if size(path) <= length:
    return
  if is_remote(path):
    buffer = _buffer_of(path)
    del buffer.content[length:]
    buffer.changed = True
    flush(path)
  else:
    with open(path, "r+b", opener=_no_symlink) as f:
      f.truncate(length)


def forget(path: Path) -> None:
  """Drops an object's append buffer, because another process may write it from now on."""
  _append_buffers.pop(str(path), None)


def _buffer_of(path: Path) -> _AppendBuffer:
  if str(path) not in _append_buffers:
    try:
      content = filesystem(path).cat_file(str(path))
    except FileNotFoundError:
      content = b""
    _append_buffers[str(path)] = _AppendBuffer(content)
  return _append_buffers[str(path)]


def remove_tree(folder: Path) -> None:
  """Removes a folder and its contents, if it exists."""
  if isinstance(folder, pathlib.Path):
    if folder.exists():
      shutil.rmtree(folder)
    return
  # The files that mark it as complete go first, so that no reader takes half of it for all.
  for name in (_COMMIT_MARKER, "dataset_info.json"):
    (folder / name).unlink(missing_ok=True)
  folder.rmtree(missing_ok=True)


def move(source: Path, target: Path) -> None:
  """Renames a file or a folder; in a bucket, copies and removes its objects one by one."""
  if not is_remote(source):
    source.rename(target)
    return
  fs = filesystem(source)
  found = [""] if fs.isfile(str(source)) else [f"/{name}" for name in infos(source)]
  for name in found:
    fs.cp_file(f"{source}{name}", f"{target}{name}")
    fs.rm_file(f"{source}{name}")


def upload(folder: pathlib.Path, target: Path, last: str = "") -> None:
  """Copies all files of a local folder into a bucket, the file named `last` after all others."""
  fs, found = filesystem(target), list(sizes(folder))
  first = [name for name in found if name != last]
  fs.put([f"{folder}/{name}" for name in first], [f"{target}/{name}" for name in first])
  if last:
    fs.put_file(f"{folder}/{last}", f"{target}/{last}")


def committed(checkpoint: Path) -> bool:
  """Whether a checkpoint folder is complete. Local ones always are: Orbax renames them last."""
  return not is_remote(checkpoint) or (checkpoint / _COMMIT_MARKER).exists()
