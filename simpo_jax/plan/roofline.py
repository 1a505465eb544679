"""Roofline times: a region's flops, bytes and collectives at a chip's peak rates."""

import math
from typing import Any, NamedTuple

import numpy as np
from jax.sharding import Mesh

from simpo_jax.distributed.chips import Chip, bounds_of, exchange_seconds, links
from simpo_jax.plan.costs import Total
from simpo_jax.program.hlo import Collective


class Exchange(NamedTuple):
  """Collectives of one kind and size, per iteration of a region."""

  kind: str
  shapes: str
  bytes: int  # per collective; see `hlo.Collective`
  count: float
  group: int  # devices that take part in one collective
  axes: tuple[str, ...]  # mesh axes along which these devices differ
  crosses_hosts: bool
  seconds: float | None  # lower bound for all of them; None if the chip is unknown


class Cost(NamedTuple):
  """The cost of a region on one device."""

  flops: float
  bytes: float
  exchanges: tuple[Exchange, ...]  # slowest first
  compute_seconds: float | None
  memory_seconds: float | None
  exchange_seconds: float | None

  @property
  def times(self) -> dict[str, float]:
    """Seconds by resource (compute, memory, exchange); {} if any of them is unknown."""
    times = {
      "compute": self.compute_seconds,
      "memory": self.memory_seconds,
      "exchange": self.exchange_seconds,
    }
    known = {name: seconds for name, seconds in times.items() if seconds is not None}
    return known if len(known) == len(times) else {}

  @property
  def seconds(self) -> float | None:
    """The roofline time: with perfect overlap, that of the slowest resource."""
    return max(self.times.values(), default=None)

  @property
  def bound(self) -> str:
    """The resource that limits the region, or "unknown"."""
    times = self.times
    return max(times, key=times.__getitem__, default="unknown")


class Machine(NamedTuple):
  """A mesh of chips."""

  mesh: Mesh
  chip: Chip | None

  def price(self, total: Total) -> Cost:
    """Computes the roofline cost of `total` on one device."""
    exchanges = self._exchanges(total)
    chip = self.chip
    return Cost(
      total.flops,
      total.bytes,
      exchanges,
      total.flops / chip.flops if chip else None,
      total.bytes / chip.hbm_rate if chip else None,
      sum(x.seconds or 0 for x in exchanges) if chip else None,
    )

  def _exchanges(self, total: Total) -> tuple[Exchange, ...]:
    found: dict[Any, list] = {}
    for collective, times in total.collectives:
      group, axes, into, hops = self._group(collective)
      if group > 1:
        key = (collective.kind, collective.shapes, collective.bytes, group, axes, into, hops)
        found.setdefault(key, []).append(times)
    out = []
    for (kind, shapes, size, group, axes, into, hops), times in found.items():
      seconds = None
      if self.chip:
        seconds = sum(times) * exchange_seconds(self.chip, kind, size, group, into, hops)
      crosses = "host" in axes
      out.append(Exchange(kind, shapes, size, sum(times), group, axes, crosses, seconds))
    return tuple(sorted(out, key=lambda x: (-(x.seconds or 0), -x.bytes * x.count)))

  def _group(self, collective: Collective) -> tuple[int, tuple[str, ...], int, int]:
    """Returns (group size, mesh axes, links, hops); the last two of the worst-connected group."""
    groups = np.asarray(collective.groups())
    positions = np.stack(np.unravel_index(groups, self.mesh.devices.shape), -1)  # [groups, n, axes]
    varies = (positions != positions[:, :1]).any(axis=(0, 1))
    axes = tuple(name for name, v in zip(self.mesh.axis_names, varies, strict=True) if v)
    into, hops = 1, 1
    devices = self.mesh.devices.flat
    coords = [d.coords for d in devices if getattr(d, "coords", None) is not None]
    if self.chip and len(coords) == self.mesh.size:
      bounds = bounds_of(coords)
      linked = [links(self.chip, [coords[d] for d in group], bounds) for group in groups]
      into, hops = min(i for i, _ in linked), max(h for _, h in linked)
    return groups.shape[1], axes, into, hops


def combine(parts: list[tuple[Cost, float]]) -> Cost:
  """Adds up the costs of consecutive parts.

  Args:
    parts: pairs of a cost and the number of times it is executed.
  """

  def seconds(field: str) -> float | None:
    values = [(getattr(cost, field), times) for cost, times in parts]
    return None if any(v is None for v, _ in values) else math.fsum(v * t for v, t in values)

  exchanges = tuple(
    x._replace(count=x.count * times, seconds=None if x.seconds is None else x.seconds * times)
    for cost, times in parts
    for x in cost.exchanges
  )
  return Cost(
    math.fsum(cost.flops * times for cost, times in parts),
    math.fsum(cost.bytes * times for cost, times in parts),
    exchanges,
    seconds("compute_seconds"),
    seconds("memory_seconds"),
    seconds("exchange_seconds"),
  )


def add_work(total: Total, flops: float = 0.0, moved: float = 0.0) -> Total:
  """Adds flops and bytes that the HLO text does not show, such as a kernel's."""
  return total._replace(flops=total.flops + flops, bytes=total.bytes + moved)
