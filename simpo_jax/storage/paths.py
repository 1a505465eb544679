"""Paths that others wrote: on a command line, or in a file that came with data."""

import difflib
import errno
import os
import pathlib
from collections.abc import Sequence

from etils import epath

from simpo_jax.errors import UserError, one_line, shown


def check_path(field: str, text: str) -> None:
  """Raises a UserError for a text that can be no path here, whatever lies there.

  Too long a name, a null byte, the home of nobody, a disk that does not answer: each
  would surface as another exception wherever the path is used.

  Args:
    field: how the message names it, such as "--workdir".
  """
  try:
    os.lstat(pathlib.Path(text).expanduser())
  except (FileNotFoundError, NotADirectoryError, PermissionError):
    pass  # for its reader to tell, who knows what was to be there
  except (OSError, ValueError, RuntimeError) as error:
    reason = error.strerror if isinstance(error, OSError) else one_line(error)
    raise UserError(f"{field}={shown(text)} can be no path ({reason}); name another") from error


def plain(name: str | os.PathLike[str]) -> pathlib.Path:
  """A local path, absolute and without `~`, `.` and `..`; all that users name go through here.

  TensorStore, by which checkpoints are read and written, refuses a path with `..`. It leads to
  where the name leads: behind a link, `..` is the parent of what the link points to. Other links
  stay as they are, for messages that the user recognises.

  Raises:
    UserError: it begins in the home of nobody, or in a current folder that is gone.
  """
  try:
    path = pathlib.Path.cwd() / pathlib.Path(name).expanduser()
  except (OSError, RuntimeError) as error:
    reason = error.strerror if isinstance(error, OSError) else one_line(error)
    raise UserError(f"{shown(str(name))} can be no path ({reason}); name another") from error
  out = pathlib.Path(os.sep)
  for part in path.parts[1:]:
    if part != "..":
      out /= part
    else:
      out = (pathlib.Path(os.path.realpath(out)) if os.path.islink(out) else out).parent
  return out


def brief(path: str | os.PathLike[str]) -> str:
  """A path as it is shown: from the current folder on, if it lies there."""
  try:
    return str(pathlib.Path(path).relative_to(pathlib.Path.cwd()))
  except (OSError, ValueError):
    return str(path)


def nearest_files(file: pathlib.Path) -> str:
  """ "; did you mean ...?" for names close to a missing one, else where the search ended."""
  if not file.parent.is_dir():
    return f"; neither does the folder {brief(file.parent)}"
  return nearest_names(file, [p.name for p in file.parent.iterdir()])


def nearest_names(file: pathlib.Path | epath.Path, names: Sequence[str]) -> str:
  """ "; did you mean ...?" for the names in a missing file's folder that are close to its own.

  Args:
    file: a path, here or in a bucket.
  """
  close = difflib.get_close_matches(file.name, names, n=3, cutoff=0.6)
  return f"; did you mean {', '.join(brief(file.parent / c) for c in close)}?" if close else ""


def escapes_folder(folder: pathlib.Path | epath.Path, name: str) -> bool:
  """Whether a name in a list that came with a folder leads out of it, by itself or by a link.

  The links of the Hugging Face cache, from a snapshot to the blobs beside it, do not count.
  """
  path = pathlib.PurePosixPath(name)
  if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
    return True
  if not isinstance(folder, pathlib.Path):  # buckets have no links
    return False
  try:
    home, target = folder.resolve(), (folder / name).resolve()
    if _is_loop(folder / name):
      return True
  except (OSError, ValueError, RuntimeError):  # the last: a link to itself, before Python 3.13
    return True
  cache = [home.parent.parent / "blobs"] if home.parent.name == "snapshots" else []
  return not any(target.is_relative_to(place) for place in (home, *cache))


def refuse_symlinks(workdir: pathlib.Path) -> None:
  """Raises a UserError for a link in a run's folder, or in a folder in it.

  A workdir may be somebody else's, and what a run writes, cuts back or removes there would be
  what the link leads to. The folder's own path may lead through links. What is neither file nor
  folder (a pipe, a device) is refused as well: it may have no end. W&B links its newest log in
  its own folder, where no file is ours.
  """
  for entry in _entries(workdir):
    looks = entry.is_dir(follow_symlinks=False) and entry.name != "wandb"
    for found in (entry, *(_entries(entry.path) if looks else ())):
      name = os.path.relpath(found.path, workdir)
      if found.is_symlink():
        raise UserError(
          f"{workdir} holds a link, {name} to {shown(os.readlink(found.path))}, and a run would "
          "write to what it leads to; put the file or folder itself in its place (more room is "
          "elsewhere? move the whole workdir there, and name that or a link to it)"
        )
      regular = found.is_file(follow_symlinks=False) or found.is_dir(follow_symlinks=False)
      if not regular and os.path.lexists(found.path):
        raise UserError(f"{workdir} holds {name}, which is neither a file nor a folder; remove it")


def _entries(folder: str | pathlib.Path) -> list[os.DirEntry]:
  """What lies in a folder; nothing where it may not be listed, or another process has moved it."""
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
