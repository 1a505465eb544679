"""Hides an installed libtpu on machines without a TPU, where it prints warnings."""

import glob
import os
import pathlib
import sys

_GOOGLE_VENDOR = "0x1ae0"  # PCI vendor id
_NON_TPU_CLASSES = ("0x01", "0x02")  # PCI classes of disks and network cards in any Google VM
_DEVICE_FILES = ("/dev/accel*", "/dev/vfio/[0-9]*")
_hidden: list[str] = []  # modules that `hide` has hidden
_TPU_VARIABLES = ("TPU_LIBRARY_PATH", "TPU_NAME", "TPU_WORKER_HOSTNAMES", "JAX_FORCE_TPU_INIT")


def hide() -> None:
  """Makes libtpu unimportable on a machine without a TPU; must run before JAX is imported.

  Otherwise JAX initializes it, and it logs three lines about missing devices. Does nothing where
  there may be a TPU or JAX_PLATFORMS names it.
  """
  if "tpu" not in os.environ.get("JAX_PLATFORMS", "") and not _may_have_tpu():
    # Importing a module whose entry is None raises ModuleNotFoundError.
    sys.modules["libtpu"] = None  # pyright: ignore[reportArgumentType]
    _hidden.append("libtpu")


def show() -> None:
  """Undoes `hide`, to use libtpu's compiler, which needs no TPU."""
  while _hidden:
    sys.modules.pop(_hidden.pop(), None)


def _may_have_tpu() -> bool:
  if any(map(os.environ.get, _TPU_VARIABLES)) or any(map(glob.glob, _DEVICE_FILES)):
    return True
  return any(
    (device / "vendor").read_text().strip() == _GOOGLE_VENDOR
    and not (device / "class").read_text().startswith(_NON_TPU_CLASSES)
    for device in pathlib.Path("/sys/bus/pci/devices").glob("*")
  )
