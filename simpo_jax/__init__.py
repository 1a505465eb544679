"""SimPO preference tuning in JAX: training and generation in one compiled program."""

import contextlib
import os
import sys

__version__ = "0.1.0"


def _is_command() -> bool:
  """Whether this is imported for `python -m simpo_jax...`, not by a notebook or a program."""
  if sys.argv[:1] != ["-m"]:  # as it is while Python looks for the module to run
    return False
  name = sys.orig_argv[-len(sys.argv)]
  if name.startswith("-"):  # -Bmsimpo_jax.main
    name = name.partition("m")[2]
  return name.partition(".")[0] == __name__


def _leave_current_folder() -> None:
  """Takes the current folder off the import path, where `python -m` has put it.

  Commands are started in folders of other people's files, such as a model's, whose jax.py would
  be run. Programs that the command starts inherit the variable.
  """
  os.environ["PYTHONSAFEPATH"] = "1"
  with contextlib.suppress(OSError):  # the folder is gone
    if not sys.flags.safe_path and sys.path[:1] == [os.getcwd()]:
      del sys.path[0]


if _is_command():
  _leave_current_folder()
  from simpo_jax import libtpu

  libtpu.hide()  # before anything imports jax
