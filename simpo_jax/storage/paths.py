"""Validation of paths from untrusted places: the command line, and files that come with data."""

import difflib
import errno
import os
import pathlib
import re
from collections.abc import Sequence

from etils import epath

from simpo_jax.errors import UserError, one_line, shown

_LINK = re.compile(r"https?://[^/]", re.IGNORECASE)


def check_path(field: str, text: str) -> None:
  """Raises a UserError for a text that cannot be a path on this system, existing or not.

  A name that is too long, a null byte, the home of an unknown user, a disk that does not respond:
  each would surface as a different exception where the path is used.

  Args:
    field: the flag or field for the error message, such as "--workdir".
  """
  if is_link(text):
    return  # may be longer than the name of a file
  try:
    os.lstat(pathlib.Path(text).expanduser())
  except (FileNotFoundError, NotADirectoryError, PermissionError):
    pass  # reported by whoever reads it and knows what is expected there
  except (OSError, ValueError, RuntimeError) as error:
    reason = error.strerror if isinstance(error, OSError) else one_line(error)
    raise UserError(f"{field}={shown(text)} cannot be a path ({reason}); name another") from error


def is_link(text: str) -> bool:
  """Whether a text is a link to a file on the web."""
  return bool(_LINK.match(text))


def plain(name: str | os.PathLike[str]) -> pathlib.Path:
  """Returns a local path, absolute and without `~`, `.` and `..`; used for all paths of users.

  TensorStore, which reads and writes checkpoints, rejects paths with `..`. After a symlink, `..`
  is the parent of the link's target, as for the operating system. Other symlinks are kept, so that
  messages show the path that the user wrote.

  Raises:
    UserError: the path begins in the home of an unknown user, or the current folder is gone.
  """
  try:
    path = pathlib.Path.cwd() / pathlib.Path(name).expanduser()
  except (OSError, RuntimeError) as error:
    reason = error.strerror if isinstance(error, OSError) else one_line(error)
    raise UserError(f"{shown(str(name))} cannot be a path ({reason}); name another") from error
  out = pathlib.Path(os.sep)
  for part in path.parts[1:]:
    if part != "..":
      out /= part
    else:
      out = (pathlib.Path(os.path.realpath(out)) if os.path.islink(out) else out).parent
  return out


def brief(path: str | os.PathLike[str]) -> str:
  """Returns a path for display: relative to the current folder if it is inside."""
  try:
    return str(pathlib.Path(path).relative_to(pathlib.Path.cwd()))
  except (OSError, ValueError):
    return str(path)


def nearest_files(file: pathlib.Path) -> str:
  """Returns a hint for a missing file: "; did you mean ...?", or that its folder is missing, too.

  Empty if the folder exists and has no similar name.
  """
  if not file.parent.is_dir():
    return f"; neither does the folder {brief(file.parent)}"
  return nearest_names(file, [p.name for p in file.parent.iterdir()])


def nearest_names(file: pathlib.Path | epath.Path, names: Sequence[str]) -> str:
  """Returns "; did you mean ...?" with the most similar of `names`, or "".

  Args:
    file: the missing file, local or in a bucket.
    names: entries of its folder.
  """
  close = difflib.get_close_matches(file.name, names, n=3, cutoff=0.6)
  return f"; did you mean {', '.join(brief(file.parent / c) for c in close)}?" if close else ""


def names_outside(name: str) -> bool:
  """Whether a file name listed by untrusted metadata is of no file in its folder."""
  path = pathlib.PurePosixPath(name)
  return path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name


def escapes_folder(folder: pathlib.Path | epath.Path, name: str) -> bool:
  """Whether a file name listed by untrusted metadata leads out of its folder, also by a symlink.

  The symlinks of the Hugging Face cache, from snapshots/ to blobs/, are allowed.
  """
  if names_outside(name):
    return True
  if not isinstance(folder, pathlib.Path):  # buckets have no links
    return False
  try:
    home, target = folder.resolve(), (folder / name).resolve()
    if _is_loop(folder / name):
      return True
  except (OSError, ValueError, RuntimeError):  # RuntimeError: a symlink loop, before Python 3.13
    return True
  cache = [home.parent.parent / "blobs"] if home.parent.name == "snapshots" else []
  return not any(target.is_relative_to(place) for place in (home, *cache))


def refuse_symlinks(workdir: pathlib.Path) -> None:
  """Raises a UserError for a symlink in a workdir or in one of its folders.

  A workdir may come from somebody else, and a run would write, truncate or remove the target of
  the link. Symlinks in the path to the workdir are fine. Pipes and devices are refused as well,
  since reading them may never end. W&B's folder is not searched: W&B links its latest log there,
  and the run itself writes no file to it.
  """
  for entry in _entries(workdir):
    searched = entry.is_dir(follow_symlinks=False) and entry.name != "wandb"
    for found in (entry, *(_entries(entry.path) if searched else ())):
      name = os.path.relpath(found.path, workdir)
      if found.is_symlink():
        raise UserError(
          f"{workdir} holds a link, {name} to {shown(os.readlink(found.path))}, and a run would "
          "write to its target; replace it by the file or folder itself (to use another disk, move "
          "the whole workdir there, and name that or a link to it)"
        )
      regular = found.is_file(follow_symlinks=False) or found.is_dir(follow_symlinks=False)
      if not regular and os.path.lexists(found.path):
        raise UserError(f"{workdir} holds {name}, which is neither a file nor a folder; remove it")


def _entries(folder: str | pathlib.Path) -> list[os.DirEntry]:
  """A folder's entries by name; none if it cannot be listed or another process has moved it."""
  try:
    with os.scandir(folder) as found:
      return sorted(found, key=lambda entry: entry.name)
  except OSError:
    return []


def _is_loop(path: pathlib.Path) -> bool:
  try:
    path.stat()
  except OSError as error:
    return error.errno == errno.ELOOP
  return False
