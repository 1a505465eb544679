"""Costs of a compiled program: matmul flops, bytes of HBM traffic, collectives.

Counted from the HLO text, region by region (see `hlo.py`). A region's bytes are what its
instructions read from and write to HBM: operands and results; for a slice only the slice,
for an in-place update only the update, and nothing for arrays in VMEM. Only matmul flops
are counted, because peak rates are quoted for matmuls. A custom kernel (a Pallas call) is
opaque: it is listed, and the caller adds its cost.
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from simpo_jax.arith import ceil_div
from simpo_jax.plan.instructions import (
  Computation,
  asynchronous,
  called_computation,
  constant_of,
  hbm_bytes,
  matmul_flops,
  origin_of,
  root_of,
  total_bytes,
  update_operand,
)
from simpo_jax.program.hlo import Collective, Instruction, Module, collective

_FREE = (  # opcodes that move no data
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
_KERNEL_TARGETS = ("tpu_custom_call", "__gpu$xla.gpu.triton", "mosaic_gpu")
_CHAINED = "chain_id="  # marks the parts of a collective that overlaps with several fusions
_FREE_TARGETS = (  # custom calls that move no data
  "AllocateBuffer",
  "AssumeGatherIndicesInBound",
  "GatherScatterIndicesBitpacked",
  "PrepareAsyncCallStart",
  "PrepareAsyncCallDone",
  "Sharding",
)


class Region(NamedTuple):
  """The body of a loop or a branch: its straight-line code, and the loops inside it.

  `flops`, `bytes`, `collectives` and `kernels` count one iteration, without `loops`.
  """

  scope: str  # the named scopes of the loop
  trips: int | None  # iterations per iteration of the enclosing region; None if not static
  flops: float
  bytes: float
  collectives: tuple[Collective, ...]
  kernels: tuple[str, ...]  # scopes or names of opaque kernels
  loops: tuple["Region", ...]


class Total(NamedTuple):
  """The costs of a region, its loops multiplied by their trip counts."""

  flops: float
  bytes: float
  collectives: tuple[tuple[Collective, float], ...]  # with execution counts


def region(module: Module, name: str, scope: str = "", trips: int | None = 1) -> Region:
  """Reads the computation `name` and everything that it calls."""
  return _Reader(module).region(name, scope, trips)


def total(region: Region, trips: Callable[[Region], float]) -> Total:
  """Sums the costs of a region over one iteration of it.

  Args:
    trips: returns the trip count of an inner loop whose `trips` is None.
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


def walk(region: Region) -> Iterator[Region]:
  """Yields a region and all regions inside it, outermost first."""
  yield region
  for loop in region.loops:
    yield from walk(loop)


def _region(
  flops: float = 0,
  moved: float = 0,
  exchanges: Sequence[Collective] = (),
  kernels: Sequence[str] = (),
  loops: Sequence[Region] = (),
) -> Region:
  return Region("", 1, flops, moved, tuple(exchanges), tuple(kernels), tuple(loops))


class _Reader:
  """Reads regions of one module."""

  def __init__(self, module: Module):
    self.module = module
    self._reads = functools.cache(self._reads_of)
    self._flops = functools.cache(self._flops_of)

  def region(self, name: str, scope: str, trips: int | None) -> Region:
    computation = self.module.computations[name]
    parts = [p for i in computation.values() if (p := self._part(i, computation)) is not None]
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
    """The cost of one instruction; None if it has none."""
    if i.opcode in _FREE or i.opcode.endswith(("-done", "-update")):
      return None
    if i.opcode == "while":
      body = called_computation(i, "body")
      return _region(loops=[self.region(body, i.scope, self._trips(i, computation))])
    if i.opcode == "conditional":
      # Only one branch runs; which one is unknown: assume the most expensive.
      branches = [self.region(name, "", 1) for name in i.called]
      return max(branches, key=lambda r: (sum(x.bytes + x.flops for x in walk(r)), len(r.loops)))
    if i.opcode in ("call", "async-start", "call-start"):
      return self.region(i.called[0], "", 1)
    if i.opcode == "custom-call":
      target = i.attribute("custom_call_target") or ""
      if any(name in target for name in _KERNEL_TARGETS):
        return _region(kernels=[i.scope or i.name])
      if any(name in target for name in _FREE_TARGETS):
        return None
    exchange = collective(i, computation)
    if i.opcode == "fusion":
      inside = self._exchanges(i.called[0])
      return _region(self._flops(i.called[0]), self._fusion_bytes(i, computation), inside)
    return _region(
      matmul_flops(i, computation), self._bytes(i, computation), [exchange] if exchange else []
    )

  def _exchanges(self, name: str) -> list[Collective]:
    """Collectives that the compiler fused with other work.

    One that overlaps with several fusions appears in each of them; it is counted at its start.
    """
    found = []
    computation = self.module.computations[name]
    starts = asynchronous(computation, "Start")
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
    """Bytes of HBM that an unfused instruction reads and writes."""
    given = [hbm_bytes(computation[n].arrays) for n in i.operands if n in computation]
    made = hbm_bytes(i.arrays)
    if i.opcode in ("dynamic-slice", "slice", "gather"):
      source = given[0] if given else 0
      return min(source, sum(a.bytes for a in i.arrays)) + made
    if i.opcode in ("dynamic-update-slice", "scatter"):
      update = i.operands[update_operand(i)]
      return 2 * min(made, total_bytes(computation[update].arrays)) if made else 0
    if i.opcode == "copy-start":  # (target, source, bookkeeping)
      return hbm_bytes(i.arrays[:2])
    if i.opcode in ("slice-start", "dynamic-slice-start"):  # (source, target, bookkeeping)
      return min(given[0], i.arrays[1].bytes) + hbm_bytes(i.arrays[1:2])
    if i.opcode.endswith("-start"):
      # The result tuple of a start repeats its operands.
      return sum(given) + max(0, made - sum(given))
    return sum(given) + made

  def _fusion_bytes(self, i: Instruction, computation: Computation) -> float:
    name = i.called[0]
    if asynchronous(self.module.computations[name], "Done"):
      return 0.0  # counted at its start
    moved = 0.0
    for index, operand in enumerate(i.operands):
      arrays = computation[operand].arrays if operand in computation else ()
      read = self._reads(name, index)
      moved += hbm_bytes(arrays) if read is None else min(hbm_bytes(arrays), read)
    sizes = self._written(name)
    for index, array in enumerate(i.arrays):
      size = sizes[index] if index < len(sizes) else None
      moved += hbm_bytes([array]) if size is None else min(hbm_bytes([array]), size)
    return moved

  def _reads_of(self, name: str, index: int) -> float | None:
    """Bytes that a fused computation reads from parameter `index`; None for all of it."""
    computation = self.module.computations[name]
    parameters = (i for i in computation.values() if i.opcode == "parameter")
    aliases = {i.name for i in parameters if i.rest.startswith(f"{index})")}
    read = 0.0
    for i in computation.values():
      used = [k for k, n in enumerate(i.operands) if n in aliases]
      if not used:
        continue
      if i.opcode == "bitcast" or (i.opcode == "fusion" and self._only_renames(i.called[0])):
        if i.root:
          return None  # how much the consumer reads is unknown
        aliases.add(i.name)
      elif i.opcode in ("dynamic-slice", "slice", "gather") and used == [0]:
        read += total_bytes(i.arrays)
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
    """Bytes that a fused computation writes to each result; None for all of it."""
    computation = self.module.computations[name]
    root, starts = root_of(computation), asynchronous(computation, "Start")

    def written(i: Instruction) -> list[float | None]:
      while i.opcode == "bitcast" and i.operands[0] in computation:
        i = computation[i.operands[0]]
      if i.opcode == "parameter" or (_CHAINED in i.rest and not starts):
        return [0.0]  # passed through
      if i.opcode in ("dynamic-update-slice", "scatter"):
        return [total_bytes(computation[i.operands[update_operand(i)]].arrays)]
      if i.opcode == "fusion":
        return self._written(i.called[0])
      return [None] * len(i.arrays)

    if root.opcode == "tuple":
      return [x for n in root.operands for x in written(computation[n])]
    return written(root)

  def _trips(self, i: Instruction, computation: Computation) -> int | None:
    """The static trip count of a loop (constant start, step and end); None if it has none."""
    if found := re.search(r'known_trip_count":\{"n":"(\d+)"', i.rest):
      return int(found[1])
    called = (called_computation(i, name) for name in ("condition", "body"))
    condition, body = (self.module.computations[name] for name in called)
    test = root_of(condition)
    if test.opcode != "compare" or test.attribute("direction") != "LT":
      return None
    counter, last = (origin_of(condition, n) for n in test.operands)
    end, index = constant_of(last), counter.attribute("index")
    if end is None or index is None or counter.opcode != "get-tuple-element":
      return None
    element = int(index)
    first, step = computation[i.operands[0]], root_of(body)
    if "tuple" not in (first.opcode, step.opcode):
      return None
    start = constant_of(origin_of(computation, first.operands[element])) or 0
    step = origin_of(body, step.operands[element])
    by = [constant_of(origin_of(body, n)) for n in step.operands] if step.opcode == "add" else []
    by = next((n for n in by if n), 1)
    return max(0, ceil_div(end - start, by))
