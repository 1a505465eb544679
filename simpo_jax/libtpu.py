"""The TPU's library, where it is installed and there is no TPU: left alone, since it complains."""

import glob
import os
import pathlib
import sys

_GOOGLE = "0x1ae0"  # vendor of PCI devices
_OTHERS = ("0x01", "0x02")  # classes of theirs that are in any of their machines: disks, network
_DEVICES = ("/dev/accel*", "/dev/vfio/[0-9]*")
_hidden: list[str] = []  # modules that `hide` has hidden
_TOLD = ("TPU_LIBRARY_PATH", "TPU_NAME", "TPU_WORKER_HOSTNAMES", "JAX_FORCE_TPU_INIT")


def hide() -> None:
  """Makes it count as not installed on a machine without a TPU; jax must not be imported yet.

  Else jax asks it for devices, and it tells in three lines that it has found none. Where there may
  be a TPU, or where one was asked for, all is as it was.
  """
  if "tpu" not in os.environ.get("JAX_PLATFORMS", "") and not _may_be_here():
    # Python refuses to import what is None.
    sys.modules["libtpu"] = None  # pyright: ignore[reportArgumentType]
    _hidden.append("libtpu")


def show() -> None:
  """Takes `hide` back: its compiler needs no TPU."""
  while _hidden:
    sys.modules.pop(_hidden.pop(), None)


def _may_be_here() -> bool:
  if any(map(os.environ.get, _TOLD)) or any(map(glob.glob, _DEVICES)):
    return True
  return any(
    (device / "vendor").read_text().strip() == _GOOGLE
    and not (device / "class").read_text().startswith(_OTHERS)
    for device in pathlib.Path("/sys/bus/pci/devices").glob("*")
  )
