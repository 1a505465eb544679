"""Properties of single HLO instructions, parsed from their text."""

import re

import numpy as np

from simpo_jax.program.hlo import Array, Instruction

Computation = dict[str, Instruction]


def matmul_flops(i: Instruction, computation: Computation) -> float:
  """Flops of a `dot` or `convolution`; 0 for others. TPU compilers turn dots into convolutions."""
  if i.opcode not in ("dot", "convolution"):
    return 0.0
  left, right = (computation[n].arrays[0].dims for n in i.operands[:2])
  out = i.arrays[0].dims
  if i.opcode == "dot":
    contracted = re.findall(r"\d+", i.attribute("lhs_contracting_dims") or "")
    return 2.0 * np.prod(out, dtype=float) * np.prod([left[int(d)] for d in contracted])
  given, _, o_names = (i.attribute("dim_labels") or "").partition("->")
  l_names, _, r_names = given.partition("_")
  flops = 2.0 * right[r_names.index("i")] * out[o_names.index("f")] * out[o_names.index("b")]
  window = window_of(i.attribute("window") or "", sum(c.isdigit() for c in o_names))
  for d, (stride, low, grown, spread) in enumerate(window):
    size = left[l_names.index(str(d))]
    at = np.arange(out[o_names.index(str(d))])[:, None] * stride - low
    at = at + np.arange(right[r_names.index(str(d))]) * spread
    inside = (at >= 0) & (at <= (size - 1) * grown) & (at % grown == 0)
    flops *= inside.sum()
  return float(flops)


def window_of(text: str, dims: int) -> list[tuple[int, int, int, int]]:
  """Parses a convolution's window.

  Returns:
    (stride, low padding, lhs dilation, rhs dilation) of each spatial dimension.
  """

  def values(name: str, default: str) -> list[str]:
    found = re.search(rf"\b{name}=(\S+)", text.strip("{}"))
    return found[1].split("x") if found else [default] * dims

  rows = zip(
    values("stride", "1"),
    values("pad", "0_0"),
    values("lhs_dilate", "1"),
    values("rhs_dilate", "1"),
    strict=True,
  )
  return [(int(s), int(p.split("_")[0]), int(l), int(r)) for s, p, l, r in rows]


def root_of(computation: Computation) -> Instruction:
  """The root instruction of a computation."""
  return next(i for i in computation.values() if i.root)


def origin_of(computation: Computation, name: str) -> Instruction:
  """Follows copies and bitcasts back to the instruction that they start from."""
  i = computation[name]
  while i.opcode in ("copy", "bitcast") and i.operands[0] in computation:
    i = computation[i.operands[0]]
  return i


def asynchronous(computation: Computation, part: str) -> bool:
  """Whether a fused computation contains an async collective's `part`, "Start" or "Done"."""
  targets = (i.attribute("custom_call_target") or "" for i in computation.values())
  return any(f"AsyncCollective{part}" in target for target in targets)


def constant_of(i: Instruction) -> int | None:
  """The value of an integer constant; None for anything else."""
  found = re.match(r"-?\d+", i.rest) if i.opcode == "constant" else None
  return int(found[0]) if found else None


def called_computation(i: Instruction, attribute: str) -> str:
  """The name of the computation in `attribute`, such as "body", without its `%`."""
  return (i.attribute(attribute) or "").lstrip("%")


def update_operand(i: Instruction) -> int:
  """Index of the update operand of a dynamic-update-slice or a single-array scatter."""
  return 1 if i.opcode == "dynamic-update-slice" else len(i.operands) - 1


def hbm_bytes(arrays: list[Array] | tuple[Array, ...]) -> int:
  """Bytes of the arrays that reside in HBM (memory space 0)."""
  return sum(a.bytes for a in arrays if a.space == 0)


def total_bytes(arrays: tuple[Array, ...]) -> int:
  """Bytes of all arrays, in any memory space."""
  return sum(a.bytes for a in arrays)
