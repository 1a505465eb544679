"""What a compiled program costs: matrix-product flops, bytes of main memory, exchanges.

Counted from its text, region by region (see `hlo.py`). A region's bytes are what its
instructions read and write in main memory: operands and results, of a slice only the
slice, of an update in place only the update, and nothing of what lies in a nearer
memory (VMEM). Flops are those of matrix products, as they are what peak rates are of.
A kernel of our own (a Pallas call) is opaque here: it is listed, and whoever knows what
it computes adds its cost.
"""

import functools
import re
from typing import NamedTuple

import numpy as np

from simpo_jax.hlo import Array, Collective, Instruction, Module, collective

Computation = dict[str, Instruction]
_NOTHING = (
  "parameter",
  "constant",
  "get-tuple-element",
  "tuple",
  "bitcast",
  "after-all",
  "partition-id",
  "replica-id",
  "opt-barrier",
  "domain",
)
_KERNELS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "mosaic_gpu")
_CHAINED = "chain_id="  # marks the parts of an exchange that goes on behind several fusions
_BOOKKEEPING = (  # custom calls that touch no data
  "AllocateBuffer",
  "AssumeGatherIndicesInBound",
  "GatherScatterIndicesBitpacked",
  "PrepareAsyncCallStart",
  "PrepareAsyncCallDone",
  "Sharding",
)


class Region(NamedTuple):
  """A loop's body, or a branch: its straight code, and the loops in it.

  `flops`, `bytes`, `collectives` and `kernels` are of one pass, without `loops`.
  """

  scope: str  # the named scopes of the loop
  trips: int | None  # how often it runs for each pass of what is around it, if it says so
  flops: float
  bytes: float
  collectives: tuple[Collective, ...]
  kernels: tuple[str, ...]  # scopes or names of opaque kernels
  loops: tuple["Region", ...]


class Total(NamedTuple):
  """A region with its loops, each as often as it runs."""

  flops: float
  bytes: float
  collectives: tuple[tuple[Collective, float], ...]  # and how often


def region(module: Module, name: str, scope: str = "", trips: int | None = 1) -> Region:
  """Reads a computation and everything that it calls."""
  return _Reader(module).region(name, scope, trips)


def total(region: Region, trips) -> Total:
  """Sums a region up.

  Args:
    trips: function from an inner loop (a Region) to how often it runs, for loops whose
      `trips` are None; the outermost region itself runs once.
  """
  flops, moved = region.flops, region.bytes
  exchanges = [(c, 1.0) for c in region.collectives]
  for loop in region.loops:
    n = loop.trips if loop.trips is not None else trips(loop)
    inner = total(loop, trips)
    flops += n * inner.flops
    moved += n * inner.bytes
    exchanges += [(c, n * times) for c, times in inner.collectives]
  return Total(flops, moved, tuple(exchanges))


def walk(region: Region):
  """A region and all regions inside it, outermost first."""
  yield region
  for loop in region.loops:
    yield from walk(loop)


class _Reader:
  """Reads regions of one module."""

  def __init__(self, module: Module):
    self.module = module
    self._reads = functools.cache(self._reads_of)
    self._flops = functools.cache(self._flops_of)

  def region(self, name: str, scope: str, trips: int | None) -> Region:
    computation = self.module.computations[name]
    parts = [self._part(i, computation) for i in computation.values()]
    parts = [p for p in parts if p is not None]
    join = lambda field: tuple(x for p in parts for x in getattr(p, field))  # noqa: E731
    return Region(
      scope,
      trips,
      sum(p.flops for p in parts),
      sum(p.bytes for p in parts),
      join("collectives"),
      join("kernels"),
      join("loops"),
    )

  def _part(self, i: Instruction, computation: Computation) -> Region | None:
    """What one instruction adds to its region."""
    if i.opcode in _NOTHING or i.opcode.endswith(("-done", "-update")):
      return None
    make = lambda flops=0, moved=0, exchanges=(), kernels=(), loops=(): Region(  # noqa: E731
      "", 1, flops, moved, tuple(exchanges), tuple(kernels), tuple(loops)
    )
    if i.opcode == "while":
      body = _named(i, "body")
      return make(loops=[self.region(body, i.scope, self._trips(i, computation))])
    if i.opcode == "conditional":
      # Only one branch runs; which one is not known here: the costliest.
      branches = [self.region(name, "", 1) for name in i.called]
      return max(branches, key=lambda r: (sum(x.bytes + x.flops for x in walk(r)), len(r.loops)))
    if i.opcode in ("call", "async-start", "call-start"):
      return self.region(i.called[0], "", 1)
    if i.opcode == "custom-call":
      target = i.attribute("custom_call_target") or ""
      if any(name in target for name in _KERNELS):
        return make(kernels=[i.scope or i.name])
      if any(name in target for name in _BOOKKEEPING):
        return None
    exchange = collective(i, computation)
    if i.opcode == "fusion":
      inside = self._exchanges(i.called[0])
      return make(self._flops(i.called[0]), self._fusion_bytes(i, computation), inside)
    return make(
      matmul_flops(i, computation),
      self._bytes(i, computation),
      [exchange] if exchange else [],
    )

  def _exchanges(self, name: str) -> list[Collective]:
    """Collectives that the compiler fused with other work.

    One that goes on behind several fusions is in the text of each: where it starts counts.
    """
    found = []
    computation = self.module.computations[name]
    starts = _asynchronous(computation, "Start")
    for i in computation.values():
      if _CHAINED in i.rest and not starts:
        continue
      if exchange := collective(i, computation):
        found.append(exchange)
      elif i.opcode == "fusion":
        found += self._exchanges(i.called[0])
    return found

  def _flops_of(self, name: str) -> float:
    computation = self.module.computations[name]
    return sum(
      self._flops(i.called[0]) if i.opcode == "fusion" else matmul_flops(i, computation)
      for i in computation.values()
    )

  def _bytes(self, i: Instruction, computation: Computation) -> float:
    """Main memory that an instruction on its own reads and writes."""
    given = [_main(computation[n].arrays) for n in i.operands if n in computation]
    made = _main(i.arrays)
    if i.opcode in ("dynamic-slice", "slice", "gather"):
      whole = given[0] if given else 0
      return min(whole, sum(a.bytes for a in i.arrays)) + made
    if i.opcode in ("dynamic-update-slice", "scatter"):
      update = i.operands[_update_operand(i)]
      return 2 * min(made, _size(computation[update].arrays)) if made else 0
    if i.opcode == "copy-start":  # (target, source, bookkeeping)
      return _main(i.arrays[:2])
    if i.opcode in ("slice-start", "dynamic-slice-start"):  # (source, target, bookkeeping)
      return min(given[0], i.arrays[1].bytes) + _main(i.arrays[1:2])
    if i.opcode.endswith("-start"):
      # Operands are repeated in the result, beside the results.
      return sum(given) + max(0, made - sum(given))
    return sum(given) + made

  def _fusion_bytes(self, i: Instruction, computation: Computation) -> float:
    name = i.called[0]
    if _asynchronous(self.module.computations[name], "Done"):
      return 0.0  # it was moved when it started
    moved = 0.0
    for place, operand in enumerate(i.operands):
      arrays = computation[operand].arrays if operand in computation else ()
      read = self._reads(name, place)
      moved += _main(arrays) if read is None else min(_main(arrays), read)
    sizes = self._written(name)
    for place, array in enumerate(i.arrays):
      size = sizes[place] if place < len(sizes) else None
      moved += _main([array]) if size is None else min(_main([array]), size)
    return moved

  def _reads_of(self, name: str, place: int) -> float | None:
    """Bytes that a fused computation reads of its parameter; None for all of it."""
    computation = self.module.computations[name]
    parameter = next(
      (
        i.name
        for i in computation.values()
        if i.opcode == "parameter" and i.rest.startswith(f"{place})")
      ),
      None,
    )
    aliases, read = {parameter}, 0.0
    for i in computation.values():
      used = [k for k, n in enumerate(i.operands) if n in aliases]
      if not used:
        continue
      if i.opcode == "bitcast" or (i.opcode == "fusion" and self._only_renames(i.called[0])):
        if i.root:
          return None  # what the result's user reads of it is not known here
        aliases.add(i.name)
      elif i.opcode in ("dynamic-slice", "slice", "gather") and used == [0]:
        read += _size(i.arrays)
      elif i.opcode in ("dynamic-update-slice", "scatter") and used == [0]:
        continue  # updated in place
      elif i.opcode == "fusion":
        for k in used:
          inner = self._reads(i.called[0], k)
          if inner is None:
            return None
          read += inner
      elif (i.opcode == "tuple" and i.root) or _CHAINED in i.rest:
        continue
      else:
        return None
    return read

  def _only_renames(self, name: str) -> bool:
    return all(
      i.opcode in ("parameter", "bitcast") for i in self.module.computations[name].values()
    )

  def _written(self, name: str) -> list[float | None]:
    """Bytes that a fused computation writes of each result; None for all of it."""
    computation = self.module.computations[name]
    root, starts = _root(computation), _asynchronous(computation, "Start")

    def written(i: Instruction) -> list[float | None]:
      while i.opcode == "bitcast" and i.operands[0] in computation:
        i = computation[i.operands[0]]
      if i.opcode == "parameter" or (_CHAINED in i.rest and not starts):
        return [0.0]  # handed on
      if i.opcode in ("dynamic-update-slice", "scatter"):
        return [_size(computation[i.operands[_update_operand(i)]].arrays)]
      if i.opcode == "fusion":
        return self._written(i.called[0])
      return [None] * len(i.arrays)

    if root.opcode == "tuple":
      return [x for n in root.operands for x in written(computation[n])]
    return written(root)

  def _trips(self, i: Instruction, computation: Computation) -> int | None:
    """How often a loop runs, where its text says so: a count by constants alone."""
    if found := re.search(r'known_trip_count":\{"n":"(\d+)"', i.rest):
      return int(found[1])
    condition, body = (self.module.computations[_named(i, n)] for n in ("condition", "body"))
    test = _root(condition)
    if test.opcode != "compare" or test.attribute("direction") != "LT":
      return None
    counter, last = (_origin(condition, n) for n in test.operands)
    end, place = _constant(last), counter.attribute("index")
    if end is None or counter.opcode != "get-tuple-element":
      return None
    first, step = computation[i.operands[0]], _root(body)
    if "tuple" not in (first.opcode, step.opcode):
      return None
    start = _constant(_origin(computation, first.operands[int(place)])) or 0
    step = _origin(body, step.operands[int(place)])
    by = [_constant(_origin(body, n)) for n in step.operands] if step.opcode == "add" else []
    by = next((n for n in by if n), 1)
    return max(0, -(-(end - start) // by))


def matmul_flops(i: Instruction, computation: Computation) -> float:
  """Flops of a `dot` or `convolution` (TPU compilers write every dot as one); else 0."""
  if i.opcode not in ("dot", "convolution"):
    return 0.0
  left, right = (computation[n].arrays[0].dims for n in i.operands[:2])
  out = i.arrays[0].dims
  if i.opcode == "dot":
    contracted = re.findall(r"\d+", i.attribute("lhs_contracting_dims") or "")
    return 2.0 * np.prod(out, dtype=float) * np.prod([left[int(d)] for d in contracted])
  labels = re.match(r"(\w+)_(\w+)->(\w+)", i.attribute("dim_labels") or "")
  l_names, r_names, o_names = labels.groups()
  flops = 2.0 * right[r_names.index("i")] * out[o_names.index("f")] * out[o_names.index("b")]
  window = _window(i.attribute("window") or "", sum(c.isdigit() for c in o_names))
  for d, (stride, low, grown, spread) in enumerate(window):
    size = left[l_names.index(str(d))]
    at = np.arange(out[o_names.index(str(d))])[:, None] * stride - low
    at = at + np.arange(right[r_names.index(str(d))]) * spread
    inside = (at >= 0) & (at <= (size - 1) * grown) & (at % grown == 0)
    flops *= inside.sum()
  return float(flops)


def _window(text: str, dims: int) -> list[tuple[int, int, int, int]]:
  """(stride, padding before, dilation of the left side, of the right) of each dimension."""

  def values(name, default):
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


def _root(computation: Computation) -> Instruction:
  return next(i for i in computation.values() if i.root)


def _origin(computation: Computation, name: str) -> Instruction:
  """What an instruction is a copy of."""
  i = computation[name]
  while i.opcode in ("copy", "bitcast") and i.operands[0] in computation:
    i = computation[i.operands[0]]
  return i


def _asynchronous(computation: Computation, part: str) -> bool:
  """Whether a fused computation has the start, or the end, of an exchange in the background."""
  targets = (i.attribute("custom_call_target") or "" for i in computation.values())
  return any(f"AsyncCollective{part}" in target for target in targets)


def _constant(i: Instruction) -> int | None:
  found = re.match(r"-?\d+", i.rest) if i.opcode == "constant" else None
  return int(found[0]) if found else None


def _named(i: Instruction, attribute: str) -> str:
  return (i.attribute(attribute) or "").lstrip("%")


def _update_operand(i: Instruction) -> int:
  """Which operand is the update of a dynamic-update-slice, or of a scatter of one array."""
  return 1 if i.opcode == "dynamic-update-slice" else len(i.operands) - 1


def _main(arrays: list[Array] | tuple[Array, ...]) -> int:
  """Bytes that lie in main memory."""
  return sum(a.bytes for a in arrays if a.space == 0)


def _size(arrays: tuple[Array, ...]) -> int:
  return sum(a.bytes for a in arrays)
