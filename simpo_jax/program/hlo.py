"""Parses the HLO text of a compiled program: computations, instructions, collectives.

XLA's cost analysis counts the body of a loop once, whatever its trip count, and all
branches of a conditional. `simpo_jax.plan.costs` therefore computes costs from this text.

References:
  HLO instructions: https://openxla.org/xla/operation_semantics.
"""

import math
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

_ITEM_BITS = {"pred": 8, "bf16": 16, "c64": 64, "c128": 128, "token": 0, "opaque": 0}
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](\{[^}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_CALLED = re.compile(
  r"(?:calls|to_apply|body|condition|branch_computations|true_computation|false_computation)="
  r"(\{[^}]*\}|%?[\w.\-]+)"
)
# Groups along mesh axes; the devices may be permuted, as in [4,4]T(1,0).
_MESH_GROUPS = re.compile(
  r"replica_groups=mesh\[(?P<axes>.*?)\]"
  r"(?:, device_ids=\(\[(?P<dims>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?\))? \{(?P<among>.*?)\}"
)
_IOTA_GROUPS = re.compile(
  r"replica_groups=\[(?P<shape>[\d,]+)\]<=\[(?P<dims>[\d,]+)\](?:T\((?P<order>[\d,]+)\))?"
)
COLLECTIVES = (
  "all-reduce",
  "all-gather",
  "all-to-all",
  "reduce-scatter",
  "collective-permute",
  "collective-broadcast",
  "ragged-all-to-all",
)


class Array(NamedTuple):
  """One array of an instruction's result."""

  dtype: str
  dims: tuple[int, ...]
  space: int  # memory space; 0 is HBM

  @property
  def bytes(self) -> int:
    return math.prod(self.dims) * item_bits(self.dtype) // 8

  def __str__(self):
    return f"{self.dtype}[{','.join(map(str, self.dims))}]"


class Instruction(NamedTuple):
  """One line of a computation."""

  name: str
  arrays: tuple[Array, ...]  # the result; tuples are flattened
  opcode: str
  operands: tuple[str, ...]  # names of instructions
  rest: str  # the text after the opcode: operands and attributes
  root: bool

  @property
  def scope(self) -> str:
    """Its `op_name`, which contains the `jax.named_scope`s; "" if it has none."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else ""

  @property
  def called(self) -> tuple[str, ...]:
    """Names of the computations it calls."""
    return tuple(n for m in _CALLED.finditer(self.rest) for n in re.findall(r"[\w.\-]+", m[1]))

  def attribute(self, name: str) -> str | None:
    """The value of `name=value`, as text."""
    found = re.search(rf"[ ,]{name}=(\{{[^}}]*\}}|[^, ]+)", self.rest)
    return found[1] if found else None


class Module(NamedTuple):
  """A program: its computations, each a dict of instructions by name, in program order."""

  entry: str
  computations: dict[str, dict[str, Instruction]]


def item_bits(dtype: str) -> int:
  """Returns the bits per element of a type such as `bf16` or `s32`."""
  if dtype in _ITEM_BITS:
    return _ITEM_BITS[dtype]
  found = re.match(r"[a-z]+(\d+)", dtype)
  return int(found[1]) if found else 0


def parse(text: str) -> Module:
  """Parses `compiled.as_text()`."""
  entry, computations = "", dict[str, dict[str, Instruction]]()
  current: dict[str, Instruction] | None = None
  for line in text.splitlines():
    if line.endswith("{") and (head := _HEAD.match(line)):
      current = computations.setdefault(head[1], {})
      if line.startswith("ENTRY"):
        entry = head[1]
    elif current is not None and (found := _INSTRUCTION.match(line)):
      instruction = _instruction(found, line)
      current[instruction.name] = instruction
  return Module(entry, computations)


def _instruction(found: re.Match[str], line: str) -> Instruction:
  shape, rest = _split_shape(line[found.end() :])
  opcode, _, rest = rest.partition("(")
  operands = rest[: _close(rest, 1)]
  arrays = tuple(_array(m) for m in _ARRAY.finditer(shape))
  return Instruction(
    found[2], arrays, opcode, tuple(_NAME.findall(operands)), rest, found[1] is not None
  )


def _split_shape(text: str) -> tuple[str, str]:
  """Splits an instruction's text into the type of its result and the rest."""
  if text.startswith("("):
    end = _close(text, 0)
    return text[:end], text[end:].lstrip()
  shape, _, rest = text.partition(" ")
  return shape, rest


def _close(text: str, depth: int) -> int:
  """Index after the closing parenthesis, if the text starts inside `depth` open ones."""
  for found in re.finditer(r"[()]", text):
    depth += 1 if found[0] == "(" else -1
    if depth == 0:
      return found.end()
  return len(text)


def _array(found: re.Match[str]) -> Array:
  dims = tuple(int(n) for n in found[2].split(",") if n)
  space = re.search(r"S\((\d+)\)", found[3] or "")
  return Array(found[1], dims, int(space[1]) if space else 0)


# --- collectives -------------------------------------------------------------------------


class Collective(NamedTuple):
  """A collective operation."""

  scope: str  # see `Instruction.scope`
  kind: str  # one of `COLLECTIVES`
  shapes: str  # of the result, without layouts
  rest: str  # attributes
  bytes: int  # per device: of the result, or of the operands for reduce-scatter

  def groups(self) -> list[list[int]]:
    """The replica groups, as indices into the flattened mesh."""
    return replica_groups(self.rest)


def collective(instruction: Instruction, computation: dict[str, Instruction]) -> Collective | None:
  """Parses a collective; None for others, and for the "-done" part of an async collective."""
  kind = instruction.opcode.removesuffix("-start")
  if kind not in COLLECTIVES:
    return None
  given = [a for n in instruction.operands if n in computation for a in computation[n].arrays]
  arrays = instruction.arrays
  if instruction.opcode.endswith("-start") and kind != "all-reduce":
    # The result of a start is (operands, results, bookkeeping).
    arrays = arrays[len(given) : 2 * len(given)] or arrays
  sizes = given if kind == "reduce-scatter" else arrays
  return Collective(
    instruction.scope,
    kind,
    " ".join(map(str, arrays)),
    instruction.rest,
    sum(a.bytes for a in sizes),
  )


def collectives(text: str) -> list[Collective]:
  """Returns all collectives of a compiled program's text, in program order."""
  found = (
    collective(instruction, computation)
    for computation in parse(text).computations.values()
    for instruction in computation.values()
  )
  return [c for c in found if c is not None]


def replica_groups(text: str) -> list[list[int]]:
  """Parses the replica groups in an instruction's attributes, in any of XLA's notations.

  Raises:
    ValueError: an unknown notation.
  """
  if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", text):
    return _lists(pairs[1])
  if mesh := _MESH_GROUPS.search(text):
    sizes = {name: int(size) for name, size in re.findall(r"('\w+')=(\d+)", mesh["axes"])}
    among = [name for name in mesh["among"].split(",") if name]
    if unknown := [name for name in among if name not in sizes]:
      raise ValueError(f"replica groups over {unknown[0]}, a part of an axis")
    ids = _iota(mesh["dims"] or str(math.prod(sizes.values())), mesh["order"])
    ids = ids.reshape(list(sizes.values()))
    axes = [list(sizes).index(name) for name in among]
    ids = np.moveaxis(ids, axes, range(-len(axes), 0)) if axes else ids
    return ids.reshape(-1, math.prod(sizes[name] for name in among)).tolist()
  if iota := _IOTA_GROUPS.search(text):
    shape = [int(n) for n in iota["shape"].split(",")]
    return _iota(iota["dims"], iota["order"]).reshape(shape).tolist()
  if groups := re.search(r"replica_groups=\{(\{.*?\})\}", text):
    return _lists(groups[1])
  raise ValueError(f"no replica groups in {text[:200]}")


def _iota(dims: str, order: str | None) -> np.ndarray:
  """An array of shape `dims` that counts up from 0, transposed to `order`."""
  sides = [int(n) for n in dims.split(",")]
  ids = np.arange(math.prod(sides)).reshape(sides)
  return ids.transpose([int(n) for n in order.split(",")]) if order else ids


def _lists(text: str) -> list[list[int]]:
  return [[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", text)]


def copies(text: str, shape: str) -> list[str]:
  """Returns the lines of a program's text that copy an array of `shape`, as in `f32[8,16,64]`."""
  return [
    line
    for line in text.splitlines()
    if re.search(rf"= \(?{re.escape(shape)}\S* .*\b(copy|copy-start)\(", line)
  ]


# --- modes -------------------------------------------------------------------------------


def branches(module: Module, count: int) -> tuple[str, ...]:
  """Returns the branch computations of the entry's conditional with `count` branches.

  Raises:
    ValueError: there is not exactly one such conditional.
  """
  found = [
    i.called
    for i in module.computations[module.entry].values()
    if i.opcode == "conditional" and len(i.called) == count
  ]
  if len(found) != 1:
    raise ValueError(f"{len(found)} conditionals of {count} branches in the entry")
  return found[0]


def reachable(module: Module, start: str) -> Iterator[str]:
  """Yields a computation and everything that it calls, each once."""
  pending, seen = [start], set[str]()
  while pending:
    name = pending.pop()
    if name in seen or name not in module.computations:
      continue
    seen.add(name)
    yield name
    for instruction in module.computations[name].values():
      pending.extend(instruction.called)
