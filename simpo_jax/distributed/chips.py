"""What accelerators can do: memory, rates, links. Per JAX device, from their makers' pages.

Sources: the TPU system pages of cloud.google.com/tpu/docs; for the rate of one
inter-chip link, "How to Scale Your Model", jax-ml.github.io/scaling-book (what can be
had, a tenth below the nominal rate); NVIDIA's data sheets. `hbm_bytes` of TPUs is what
their compiler (libtpu 0.0.42) lets a program have, a little less than what is built in.
"""

from typing import NamedTuple

GIB = 2**30


class Chip(NamedTuple):
  """One kind of device."""

  name: str
  hbm_bytes: int
  hbm_rate: float  # bytes/s
  flops: float  # bfloat16 matrix products, flop/s
  link_rate: float  # bytes/s, one direction of one link to a neighbour
  torus: int = 0  # dimensions of the links' torus; 0: every device reaches every other
  wrap: int = 0  # a side has its ends linked if it is (with all others, in 3-D) a multiple
  capability: float = 0  # of an NVIDIA GPU, as CUDA counts


_V4 = Chip("TPU v4", int(30.75 * GIB), 1.228e12, 275e12, 45e9, torus=3, wrap=4)
_V5E = Chip("TPU v5e", int(15.75 * GIB), 0.819e12, 197e12, 45e9, torus=2, wrap=16)
_V5P = Chip("TPU v5p", int(95.74 * GIB), 2.765e12, 459e12, 90e9, torus=3, wrap=4)
_V6E = Chip("TPU v6e", int(31.25 * GIB), 1.64e12, 918e12, 90e9, torus=2, wrap=16)
# JAX shows each of the chip's two halves as a device.
_TPU7X = Chip("TPU7x, half a chip", int(94.75 * GIB), 3.69e12, 1153e12, 90e9, torus=3, wrap=4)
_H100 = Chip("H100", 80 * 10**9, 3.35e12, 989e12, 450e9, capability=9.0)
_H200 = Chip("H200", 141 * 10**9, 4.8e12, 989e12, 450e9, capability=9.0)
_A100 = Chip("A100 80GB", 80 * 10**9, 2.039e12, 312e12, 300e9, capability=8.0)

# By `device.device_kind`, whose spelling has changed over the years.
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


class Option(NamedTuple):
  """A setting of the compiler, for some chips."""

  name: str
  value: str
  chips: tuple[Chip, ...]
  reason: str


# What programs are compiled with, beside the compiler's defaults. Only what each chip's compiler
# has been seen to use, in its text for that chip (docs/plans.md): a setting that is made for
# another chip may be taken, or refused, or give wrong results. So nothing is asked for on a v5e,
# where libtpu fuses gathers with matrix products by itself, nor of the fusion on any other chip,
# where libtpu 0.0.50 refuses it ("incorrect results, hang, SDC") and older ones just do it.
COMPILER_OPTIONS = (
  Option(
    "xla_enable_async_all_gather",
    "true",
    (_V4,),
    "training's gathers start early and end after other work; no other chip's compiler heeds it",
  ),
)

HOP_SECONDS = 1e-6  # latency of a link


def chip_of(device_kind: str) -> Chip | None:
  """The chip, or None if nothing is known of it (a CPU, say)."""
  return CHIPS.get(device_kind)


def links(chip: Chip, coords: list[tuple[int, ...]], bounds: tuple[int, ...]) -> tuple[int, int]:
  """How a group of devices is linked: (links into its worst-placed device, hops across it).

  An idealisation that makes for a lower bound of time: every dimension in which the
  group extends brings one link, or two where that dimension is a whole ring.

  Args:
    coords: of the group's devices in the torus.
    bounds: sides of the whole slice.
  """
  if not chip.torus:
    return 1, 1
  into = hops = 0
  # The optical switches of 3-D slices close rings between whole cubes alone.
  whole = chip.torus == 2 or all(side % chip.wrap == 0 for side in bounds)
  for axis, side in enumerate(bounds):
    extent = len({c[axis] for c in coords})
    if extent > 1:
      ring = extent == side and whole and side % chip.wrap == 0
      into += 2 if ring else 1
      hops += extent // 2 if ring else extent - 1
  return max(1, into), max(1, hops)


def exchange_seconds(chip: Chip, kind: str, size: int, group: int, into: int, hops: int) -> float:
  """Least time of one collective among the devices of a group.

  Each device must at least receive what it lacks, over all links it has into the group,
  and a message must cross the group.

  Args:
    kind: as HLO calls it, such as "all-gather".
    size: bytes that one device ends up with (all-gather), or brings (the others).
    group: number of devices.
    into, hops: from `links`.
  """
  if group < 2:
    return 0.0
  lacking = size * (group - 1) / group
  if kind == "all-reduce":
    lacking *= 2  # scatter the sums, gather them
  if kind in ("collective-permute", "collective-broadcast"):
    lacking, into = size, 1
  latency = HOP_SECONDS * hops * (2 if kind == "all-reduce" else 1)
  return max(lacking / (chip.link_rate * into), latency)


def bounds_of(coords: list[tuple[int, ...]]) -> tuple[int, ...]:
  """Sides of the slice that has these coordinates."""
  return tuple(1 + max(side) for side in zip(*coords, strict=True)) if coords else ()
