"""Size of the KV pool: the worst case over all slots, limited by device memory."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax

from simpo_jax import distributed
from simpo_jax.distributed.chips import chip_of
from simpo_jax.errors import UserError

HEADROOM = 0.1  # fraction of device memory for the temporaries of prefill and decoding


class NoRoom(UserError):
  """Device memory cannot hold the KV pages of the largest request."""

  def __init__(self, message: str, pages: int):
    super().__init__(message)
    self.pages = pages  # needed by the largest request


@runtime_checkable
class Device(Protocol):
  """The attributes of `jax.Device` used here; jaxlib has no type stubs for it."""

  platform: str
  device_kind: str

  def memory_stats(self) -> Mapping[str, Any]:
    """The backend's memory statistics; raises if it has none."""
    ...


class Pool(NamedTuple):
  """The size of the KV pool, and the reason for it."""

  pages: int  # P, per group and layer
  reason: str


def pool_size(requested: int, worst: int, largest: int, page_bytes: int, room: int | None) -> Pool:
  """Chooses the number of pages.

  Args:
    requested: `config.generate.num_pages`; 0 to choose automatically.
    worst: total pages of the largest requests that may run at the same time.
    largest: pages of the largest single request.
    page_bytes: bytes of a page in all layers, on one device.
    room: bytes available for the pool on one device; None if unknown.

  Raises:
    UserError: the largest request would never fit (`NoRoom` if for lack of memory).
  """
  fits = worst if room is None else max(0, room // page_bytes)
  pages = requested or min(worst, fits)
  if pages < largest:
    takes = f"the largest request (prompt and budget) takes {largest} KV pages"
    if requested:
      raise UserError(
        f"{takes}, and --config.generate.num_pages={requested}; set it to at least {largest}, "
        "lower --config.generate.max_new_tokens, or shorten the prompts"
      )
    if room is not None and room <= 0:
      raise NoRoom(
        "train state and the weights for decoding take all memory of a device, and leave none for "
        "KV pages; use more devices, or see what would fit: python -m simpo_jax.plan",
        largest,
      )
    raise NoRoom(
      f"{takes}, and there is memory for {pages}; lower --config.generate.max_new_tokens, or "
      "shorten the prompts",
      largest,
    )
  if requested:
    reason = "as configured" + (f", {worst} would hold every slot" if requested < worst else "")
  elif pages == worst:
    reason = "every slot at its longest"
  else:
    reason = f"what memory allows; every slot at its longest would take {worst}"
  return Pool(pages, reason)


def free_bytes(device: Device, taken: int) -> int | None:
  """Returns the bytes of device memory available besides `taken` bytes; None if unknown.

  A fraction of the memory (`HEADROOM`) is reserved for temporaries. The result may be
  negative.
  """
  total = device_bytes(device)
  return None if total is None else int(total * (1 - HEADROOM)) - taken


def device_bytes(device: Device) -> int | None:
  """Returns a device's bytes of memory; None if unknown. CPU devices share the free memory."""
  if device.platform == "cpu":
    return _free_memory() // (jax.local_device_count() * distributed.processes_here())
  try:
    return device.memory_stats()["bytes_limit"]
  except Exception:  # a device of a described topology, or a backend without statistics
    chip = chip_of(device.device_kind)
    return chip and chip.hbm_bytes


def _free_memory() -> int:
  """Bytes that this process can still allocate: of the machine, or its container if less."""
  free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
  try:
    lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
    free = next(int(x.split()[1]) * 1024 for x in lines if x.startswith("MemAvailable:"))
    group = pathlib.Path("/sys/fs/cgroup")
    used = int((group / "memory.current").read_text())
    free = min(free, int((group / "memory.max").read_text()) - used)
  except (OSError, ValueError, StopIteration):
    pass  # no such file on this system, or no limit ("max")
  return free
