"""Specifications of accelerators, per JAX device: memory, peak rates, interconnect.

Sources: the TPU system pages of cloud.google.com/tpu/docs; for the achievable bandwidth of an
inter-chip link, a tenth below the nominal one, "How to Scale Your Model"
(jax-ml.github.io/scaling-book); NVIDIA's data sheets. `hbm_bytes` of TPUs is what the compiler
(libtpu 0.0.42) lets a program use, a little less than the chip's HBM.
"""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
  """Specifications of one kind of device."""

  name: str
  hbm_bytes: int
  hbm_rate: float  # bytes/s
  flops: float  # flop/s of bfloat16 matrix products
  link_rate: float  # bytes/s in one direction of one link
  torus: int = 0  # dimensions of the interconnect's torus; 0: all devices are connected
  wrap: int = 0  # an axis is a ring if its size (in 3-D: every axis' size) is a multiple of this
  capability: float = 0  # CUDA compute capability of an NVIDIA GPU


_V4 = Chip("TPU v4", int(30.75 * GIB), 1.228e12, 275e12, 45e9, torus=3, wrap=4)
_V5E = Chip("TPU v5e", int(15.75 * GIB), 0.819e12, 197e12, 45e9, torus=2, wrap=16)
_V5P = Chip("TPU v5p", int(95.74 * GIB), 2.765e12, 459e12, 90e9, torus=3, wrap=4)
_V6E = Chip("TPU v6e", int(31.25 * GIB), 1.64e12, 918e12, 90e9, torus=2, wrap=16)
# JAX presents each half of this chip as a device.
_TPU7X = Chip("TPU7x, half a chip", int(94.75 * GIB), 3.69e12, 1153e12, 90e9, torus=3, wrap=4)
_H100 = Chip("H100", 80 * 10**9, 3.35e12, 989e12, 450e9, capability=9.0)
_H200 = Chip("H200", 141 * 10**9, 4.8e12, 989e12, 450e9, capability=9.0)
_A100 = Chip("A100 80GB", 80 * 10**9, 2.039e12, 312e12, 300e9, capability=8.0)

# By `device.device_kind`, which varies between versions of libtpu.
CHIPS = {
  "TPU v4": _V4,
  "TPU v5 lite": _V5E,
  "TPU v5e": _V5E,
  "TPU v5": _V5P,
  "TPU v5p": _V5P,
  "TPU v6 lite": _V6E,
  "TPU v6e": _V6E,
  "TPU7x": _TPU7X,
  "NVIDIA H100 80GB HBM3": _H100,
  "NVIDIA H200": _H200,
  "NVIDIA A100-SXM4-80GB": _A100,
}


class CompilerOption(NamedTuple):
  """A compiler option, and the chips it is set for."""

  name: str
  value: str
  chips: tuple[Chip, ...]
  reason: str


# Options set in addition to the compiler's defaults: only those that have an effect in the HLO
# compiled for the chip (docs/plans.md), since an option meant for another chip may be ignored,
# refused, or give wrong results. None is set for a v5e, where libtpu fuses all-gathers with matrix
# products by default. That fusion is not enabled on other chips: libtpu 0.0.50 refuses it there
# ("incorrect results, hang, SDC"), and older versions do it without a warning.
COMPILER_OPTIONS = (
  CompilerOption(
    "xla_enable_async_all_gather",
    "true",
    (_V4,),
    "all-gathers of training overlap with other work; ignored by the compilers of other chips",
  ),
)

HOP_SECONDS = 1e-6  # latency of a link


def chip_of(device_kind: str) -> Chip | None:
  """The chip's specifications, or None if it is not listed (a CPU, say)."""
  return CHIPS.get(device_kind)


def links(chip: Chip, coords: list[tuple[int, ...]], bounds: tuple[int, ...]) -> tuple[int, int]:
  """Links and distances within a group of devices, idealized for lower bounds of time.

  Every axis along which the group extends counts as one link, or as two if the group spans a
  complete ring.

  Args:
    coords: coordinates of the group's devices in the torus.
    bounds: sides of the slice, in chips.

  Returns:
    The number of links into the device that has the fewest, and the hops across the group.
  """
  if not chip.torus:
    return 1, 1
  into = hops = 0
  # In 3-D slices optical switches close the rings, and they connect complete cubes only.
  cubes = chip.torus == 2 or all(side % chip.wrap == 0 for side in bounds)
  for axis, side in enumerate(bounds):
    extent = len({c[axis] for c in coords})
    if extent > 1:
      ring = extent == side and cubes and side % chip.wrap == 0
      into += 2 if ring else 1
      hops += extent // 2 if ring else extent - 1
  return max(1, into), max(1, hops)


def exchange_seconds(chip: Chip, kind: str, size: int, group: int, into: int, hops: int) -> float:
  """Lower bound of the time of a collective, in seconds.

  Each device must receive the bytes that it lacks over all its links into the group, and a
  message must cross the group.

  Args:
    kind: name in HLO, such as "all-gather".
    size: bytes of one device's output (all-gather) or input (all others).
    group: number of devices.
    into: links into a device, from `links`.
    hops: hops across the group, from `links`.
  """
  if group < 2:
    return 0.0
  lacking = size * (group - 1) / group
  if kind == "all-reduce":
    lacking *= 2  # reduce-scatter, then all-gather
  if kind in ("collective-permute", "collective-broadcast"):
    lacking, into = size, 1
  latency = HOP_SECONDS * hops * (2 if kind == "all-reduce" else 1)
  return max(lacking / (chip.link_rate * into), latency)


def bounds_of(coords: list[tuple[int, ...]]) -> tuple[int, ...]:
  """Sides of the slice whose devices have these coordinates."""
  return tuple(1 + max(side) for side in zip(*coords, strict=True)) if coords else ()
