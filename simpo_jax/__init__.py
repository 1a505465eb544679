"""SimPO preference tuning in JAX: training and generation in one compiled program."""

import contextlib
import os
import sys

__version__ = "0.1.0"


def _is_command() -> bool:
  """Whether this import is part of `python -m simpo_jax...` rather than of a user's program."""
  if sys.argv[:1] != ["-m"]:  # its value while Python locates the module to run
    return False
  name = sys.orig_argv[-len(sys.argv)]
  if name.startswith("-"):  # -Bmsimpo_jax.main
    name = name.partition("m")[2]
  return name.partition(".")[0] == __name__


def _drop_current_folder() -> None:
  """Removes the current folder from the import path, to which `python -m` has added it.

  A command may be started in a folder of untrusted files, such as a downloaded model's, whose
  jax.py would be imported. Child processes inherit the environment variable.
  """
  os.environ["PYTHONSAFEPATH"] = "1"
  with contextlib.suppress(OSError):  # the current folder was deleted
    if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
      del sys.path[0]


if _is_command():
  _drop_current_folder()
  from simpo_jax import libtpu

  libtpu.hide()  # before anything imports jax
