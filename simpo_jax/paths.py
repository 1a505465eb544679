"""Paths that others wrote: on a command line, or in a file that came with data."""

import os
import pathlib

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


def leaves(folder: pathlib.Path, name: str) -> bool:
  """Whether a name in a list that came with a folder leads out of it, by itself or by a link.

  The links of the Hugging Face cache, from a snapshot to the blobs beside it, do not count.
  """
  path = pathlib.PurePosixPath(name)
  if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
    return True
  if "://" in str(folder):  # buckets have no links
    return False
  try:
    home, target = folder.resolve(), (folder / name).resolve()
  except (OSError, ValueError, RuntimeError):  # the last: a link to itself
    return True
  cache = [home.parent.parent / "blobs"] if home.parent.name == "snapshots" else []
  return not any(target.is_relative_to(place) for place in (home, *cache))
