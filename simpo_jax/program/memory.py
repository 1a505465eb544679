"""Device memory by mode, read out of the compiler's own buffer assignment.

The modes of the one program share one arena of temporaries. The assignment says
where in it each buffer lies, and the HLO says which branch defines the buffer: the
bytes of the arena that a branch touches are what it needs. Both are protobufs without
published Python classes, hence the few field numbers of xla/service/hlo.proto here.

TPU compilers do not expose their buffer assignment through the API, but dump it as text with
`xla_dump_to`. `simpo_jax.plan` sets that option and parses the dump with `read_assignment`.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from simpo_jax.program import hlo
from simpo_jax.program.ledger import Mode

# HloModuleProto, HloComputationProto, HloInstructionProto
_COMPUTATIONS, _ENTRY_ID = 3, 6
_INSTRUCTIONS, _COMPUTATION_ID = 2, 5
_OPCODE, _INSTRUCTION_ID, _CALLED = 2, 35, 38
# BufferAssignmentProto, LogicalBufferProto, its Location, BufferAllocationProto, Assigned
_BUFFERS, _ALLOCATIONS = 1, 3
_BUFFER_ID, _DEFINED_AT = 1, 3
_DEFINED_BY = 4
_ASSIGNED = 9
_ASSIGNED_ID, _OFFSET, _SIZE = 1, 2, 3
_LARGEST = 8  # buffers listed of a mode
# BufferAllocationProto: what is not a temporary is an argument, an output or a constant.
_NOT_TEMPORARY = (5, 7, 12)  # is_entry_computation_parameter, maybe_live_out, is_constant


class Memory(NamedTuple):
  """Bytes per device of the executable."""

  arguments: int  # train state, batch, requests, ledger
  outputs: int
  aliased: int  # of the arguments: updated in place
  temporaries: int
  by_mode: dict[str, int]  # of the temporaries, what each mode touches; {} if not known
  code: int = 0  # the program itself

  @property
  def peak(self) -> int:
    return self.arguments + self.outputs - self.aliased + self.temporaries + self.code

  def peaks(self) -> dict[str, int]:
    """The peak of the program, and of each mode where it is known."""
    rest = self.peak - self.temporaries
    return {"program": self.peak, **{mode: rest + n for mode, n in self.by_mode.items()}}


class Buffer(NamedTuple):
  """A temporary array."""

  bytes: int
  name: str  # the instruction that makes it
  shape: str


class BufferAssignment(NamedTuple):
  """What lies in a device's main memory, by the compiler's own account."""

  total: int  # bytes: arguments, results and temporaries
  by_mode: dict[str, int]  # of the temporaries, what each mode touches
  largest: dict[str, tuple[Buffer, ...]]  # of each mode's temporaries, distinct in place


_ALLOCATION = re.compile(r"allocation \d+: size (\d+)(?:, color (\d+))?(.*):$")
_VALUE = re.compile(
  r" value: <\d+ ([^ {]+)(?:\{[\d,]*\})? .*?\(size=(\d+),offset=(\d+)\): (\(|[\w]+\[[\d,]*\])"
)


def read_assignment(text: str, module: hlo.Module) -> BufferAssignment:
  """Reads the dump of a buffer assignment.

  Args:
    text: the file `*buffer-assignment.txt`.
    module: the compiled program that it belongs to.

  Raises:
    ValueError: the text or the program is not as expected.
  """
  owner = {
    name: mode
    for mode, branch in zip(Mode, hlo.branches(module, len(Mode)), strict=True)
    for computation in hlo.reachable(module, branch)
    for name in module.computations[computation]
  }
  total, temporary, known = 0, False, False
  spans: dict[Mode, dict[tuple[int, int], Buffer]] = {mode: {} for mode in Mode}
  for line in text.splitlines():
    if found := _ALLOCATION.match(line):
      size, color, what = int(found[1]), found[2] or "0", found[3]
      total += size if color == "0" else 0
      temporary = color == "0" and "preallocated-temp" in what
    elif temporary and (found := _VALUE.match(line)):
      mode, size, start = owner.get(found[1]), int(found[2]), int(found[3])
      known = known or mode is not None
      if mode is not None:
        spans[mode].setdefault((start, start + size), Buffer(size, found[1], found[4]))
  if not known:
    raise ValueError("no temporaries of the program's instructions in the buffer assignment")
  return BufferAssignment(
    total,
    {mode.name.lower(): _union(list(own)) for mode, own in spans.items()},
    {
      mode.name.lower(): tuple(sorted(own.values(), key=lambda b: -b.bytes)[:_LARGEST])
      for mode, own in spans.items()
    },
  )


def memory_of(compiled) -> Memory:
  """What the compiler says about the executable."""
  stats = compiled.memory_analysis()
  return Memory(
    stats.argument_size_in_bytes,
    stats.output_size_in_bytes,
    stats.alias_size_in_bytes,
    stats.temp_size_in_bytes,
    temporaries_by_mode(compiled),
    stats.generated_code_size_in_bytes,
  )


def temporaries_by_mode(compiled) -> dict[str, int]:
  """Bytes of temporaries per device that each mode needs; {} where the compiler is silent."""
  try:
    [module] = compiled.runtime_executable().hlo_modules()
    owner = _branch_of_instructions(module.as_serialized_hlo_module_proto())
    assignment = bytes(compiled.memory_analysis().serialized_buffer_assignment_proto)
    touched = _touched(assignment, owner)
  except Exception:  # another backend or protobuf version: the figure is merely omitted
    return {}
  # If the compiler renumbered the instructions in its buffer assignment, no id matches.
  return touched if any(touched.values()) else {}


def _branch_of_instructions(module: bytes) -> dict[int, Mode]:
  """The mode whose branch contains an instruction, by instruction id."""
  computations = {}
  entry = 0
  for number, value in _fields(module):
    if number == _COMPUTATIONS:
      instructions = [_instruction(v) for n, v in _fields(value) if n == _INSTRUCTIONS]
      computations[dict(_fields(value))[_COMPUTATION_ID]] = instructions
    elif number == _ENTRY_ID:
      entry = value
  [branches] = [
    called
    for opcode, _, called in computations[entry]
    if opcode == b"conditional" and len(called) == len(Mode)
  ]
  owner = {}
  for mode, branch in zip(Mode, branches, strict=True):
    pending, seen = [branch], set()
    while pending:
      computation = pending.pop()
      if computation in seen:
        continue
      seen.add(computation)
      for _, instruction, called in computations[computation]:
        owner[instruction] = mode
        pending.extend(called)
  return owner


def _instruction(data: bytes) -> tuple[bytes, int, list[int]]:
  opcode, number, called = b"", 0, []
  for field, value in _fields(data):
    if field == _OPCODE:
      opcode = value
    elif field == _INSTRUCTION_ID:
      number = value
    elif field == _CALLED:
      called += list(_varints(value)) if isinstance(value, bytes) else [value]
  return opcode, number, called


def _touched(assignment: bytes, owner: dict[int, Mode]) -> dict[str, int]:
  defined_by = {}
  allocations = []
  for number, value in _fields(assignment):
    if number == _BUFFERS:
      buffer = dict(_fields(value))
      location = dict(_fields(buffer[_DEFINED_AT]))
      defined_by[buffer.get(_BUFFER_ID, 0)] = location.get(_DEFINED_BY, 0)
    elif number == _ALLOCATIONS:
      allocations.append(list(_fields(value)))
  out = {mode.name.lower(): 0 for mode in Mode}
  for allocation in allocations:
    if any(dict(allocation).get(n) for n in _NOT_TEMPORARY):
      continue
    spans: dict[Mode, list[tuple[int, int]]] = {mode: [] for mode in Mode}
    for number, value in allocation:
      if number == _ASSIGNED:
        assigned = dict(_fields(value))
        mode = owner.get(defined_by[assigned.get(_ASSIGNED_ID, 0)])
        if mode is not None:
          offset = assigned.get(_OFFSET, 0)
          spans[mode].append((offset, offset + assigned.get(_SIZE, 0)))
    for mode, own in spans.items():
      out[mode.name.lower()] += _union(own)
  return out


def _union(spans: list[tuple[int, int]]) -> int:
  """Length of the union of intervals."""
  total = reached = 0
  for start, end in sorted(spans):
    total += max(0, end - max(start, reached))
    reached = max(reached, end)
  return total


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
  """(field number, value) of a protobuf message: varints as int, the rest as bytes."""
  at = 0
  while at < len(data):
    key, at = _varint(data, at)
    number, wire = key >> 3, key & 7
    if wire == 0:
      value, at = _varint(data, at)
    else:
      if wire == 2:
        size, at = _varint(data, at)
      elif wire in (1, 5):
        size = 8 if wire == 1 else 4
      else:
        raise ValueError(f"wire type {wire}")
      value, at = data[at : at + size], at + size
    yield number, value


def _varints(data: bytes) -> Iterator[int]:
  at = 0
  while at < len(data):
    value, at = _varint(data, at)
    yield value


def _varint(data: bytes, at: int) -> tuple[int, int]:
  value = shift = 0
  while True:
    byte = data[at]
    at += 1
    value |= (byte & 127) << shift
    if byte < 128:
      return value, at
    shift += 7
