"""What a compiled program's text says."""

import re
from typing import NamedTuple

import numpy as np

_COLLECTIVE = re.compile(
  r"= (\(.*?\)|\S+) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)"
  r"(?:-start)?\("
)
_ARRAY = re.compile(r"\w+\[[\d,]*\]")


class Collective(NamedTuple):
  """One exchange between devices."""

  scope: str  # the named scopes it comes from
  kind: str
  shapes: str  # without layouts
  line: str

  def groups(self) -> list[list[int]]:
    """Of devices that exchange with each other."""
    return _groups(self.line)

  def crosses_hosts(self, devices: int) -> bool:
    """Whether devices of different hosts exchange, `devices` to a host, in order."""
    return any(len({d // devices for d in group}) > 1 for group in self.groups())


def collectives(text: str) -> list[Collective]:
  """All exchanges of a compiled program, in the order of its text."""
  found = []
  for line in text.splitlines():
    if match := _COLLECTIVE.search(line):
      scope = re.search(r'op_name="([^"]*)"', line)
      shapes = " ".join(_ARRAY.findall(match[1]))
      found.append(Collective(scope[1] if scope else "", match[2], shapes, line))
  return found


def _groups(line: str) -> list[list[int]]:
  if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", line):
    return _lists(pairs[1])
  if mesh := re.search(r"replica_groups=mesh\[(.*?)\] \{(.*?)\}", line):  # {names of axes}
    sizes = {name: int(size) for name, size in re.findall(r"('\w+')=(\d+)", mesh[1])}
    among = mesh[2].split(",")
    ids = np.arange(np.prod(list(sizes.values()))).reshape(list(sizes.values()))
    axes = [list(sizes).index(name) for name in among]  # raises for a part of an axis
    ids = np.moveaxis(ids, axes, range(-len(axes), 0))
    return ids.reshape(-1, np.prod([sizes[name] for name in among])).tolist()
  if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
    shape, dims = ([int(n) for n in iota[i].split(",")] for i in (1, 2))
    ids = np.arange(np.prod(dims)).reshape(dims)
    if iota[3]:
      ids = ids.transpose([int(n) for n in iota[3].split(",")])
    return ids.reshape(shape).tolist()
  groups = re.search(r"replica_groups=\{(\{.*?\})\}", line)
  assert groups, line
  return _lists(groups[1])


def _lists(text: str) -> list[list[int]]:
  return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]


def copies(text: str, shape: str) -> list[str]:
  """The instructions that copy an array of a shape such as `f32[8,16,64]`."""
  return [
    line
    for line in text.splitlines()
    if re.search(rf"= \(?{re.escape(shape)}\S* .*\b(copy|copy-start)\(", line)
  ]
