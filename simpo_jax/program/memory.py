"""Device memory by mode, parsed from the compiler's buffer assignment.

All modes of the program share one arena of temporaries. The assignment has the offset of
each buffer in it, and the HLO has the branch that defines the buffer: a branch needs the
bytes of the arena that it touches. Both are protobufs without published Python classes,
hence the field numbers of xla/service/hlo.proto here.

TPU compilers do not expose their buffer assignment through the API, but dump it as text with
`xla_dump_to`. `simpo_jax.plan` sets that option and parses the dump with `read_assignment`.
"""

import re
from collections.abc import Iterator
from typing import NamedTuple

from jax.stages import Compiled

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
_LARGEST = 8  # buffers listed per mode
# BufferAllocationProto: flags of arguments, outputs and constants; all others are temporaries.
_NOT_TEMPORARY = (5, 7, 12)  # is_entry_computation_parameter, maybe_live_out, is_constant


class Memory(NamedTuple):
  """The executable's memory, in bytes per device."""

  arguments: int  # train state, batch, requests, ledger
  outputs: int
  aliased: int  # the part of the arguments that is updated in place
  temporaries: int
  by_mode: dict[str, int]  # the part of the temporaries that each mode needs; {} if unknown
  code: int = 0  # the program itself

  @property
  def peak(self) -> int:
    return self.arguments + self.outputs - self.aliased + self.temporaries + self.code

  def peaks(self) -> dict[str, int]:
    """Returns the peak bytes of the program, and of each mode if known."""
    rest = self.peak - self.temporaries
    return {"program": self.peak, **{mode: rest + n for mode, n in self.by_mode.items()}}


class Buffer(NamedTuple):
  """A temporary array."""

  bytes: int
  name: str  # the instruction that defines it
  shape: str


class BufferAssignment(NamedTuple):
  """A device's HBM contents, as assigned by the compiler."""

  total: int  # bytes of arguments, results and temporaries
  by_mode: dict[str, int]  # the part of the temporaries that each mode needs
  largest: dict[str, tuple[Buffer, ...]]  # largest temporaries per mode, one per memory range


_ALLOCATION = re.compile(r"allocation \d+: size (\d+)(?:, color (\d+))?(.*):$")
_VALUE = re.compile(
  r" value: <\d+ ([^ {]+)(?:\{[\d,]*\})? .*?\(size=(\d+),offset=(\d+)\): (\(|[\w]+\[[\d,]*\])"
)


def read_assignment(text: str, module: hlo.Module) -> BufferAssignment:
  """Parses the compiler's text dump of a buffer assignment.

  Args:
    text: contents of the file `*buffer-assignment.txt`.
    module: the compiled program that it belongs to.

  Raises:
    ValueError: the text or the program has an unexpected format.
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
    {mode.name.lower(): _union(list(buffers)) for mode, buffers in spans.items()},
    {
      mode.name.lower(): tuple(sorted(buffers.values(), key=lambda b: -b.bytes)[:_LARGEST])
      for mode, buffers in spans.items()
    },
  )


def memory_of(compiled: Compiled) -> Memory:
  """Returns the compiler's memory statistics of an executable."""
  stats = compiled.memory_analysis()
  if stats is None:
    raise RuntimeError("the compiler reports no memory statistics of its executable")
  return Memory(
    stats.argument_size_in_bytes,
    stats.output_size_in_bytes,
    stats.alias_size_in_bytes,
    stats.temp_size_in_bytes,
    temporaries_by_mode(compiled),
    stats.generated_code_size_in_bytes,
  )


def temporaries_by_mode(compiled: Compiled) -> dict[str, int]:
  """Returns bytes of temporaries per device that each mode needs; {} if unavailable."""
  try:
    executable, stats = compiled.runtime_executable(), compiled.memory_analysis()
    if executable is None or stats is None:
      return {}
    [module] = executable.hlo_modules()
    owner = _branch_of_instructions(module.as_serialized_hlo_module_proto())
    assignment = bytes(stats.serialized_buffer_assignment_proto)
    touched = _touched(assignment, owner)
  except Exception:  # another backend or protobuf version: the figure is merely omitted
    return {}
  # If the compiler renumbered the instructions in its buffer assignment, no id matches.
  return touched if any(touched.values()) else {}


def _branch_of_instructions(data: bytes) -> dict[int, Mode]:
  """Maps instruction ids to the mode whose branch contains the instruction."""
  module = _Message(data)
  computations = {
    computation.number(_COMPUTATION_ID): [
      _instruction(message) for message in computation.messages(_INSTRUCTIONS)
    ]
    for computation in module.messages(_COMPUTATIONS)
  }
  [branches] = [
    instruction.called
    for instruction in computations[module.number(_ENTRY_ID)]
    if instruction.opcode == b"conditional" and len(instruction.called) == len(Mode)
  ]
  owner: dict[int, Mode] = {}
  for mode, branch in zip(Mode, branches, strict=True):
    pending, seen = [branch], set[int]()
    while pending:
      computation = pending.pop()
      if computation in seen:
        continue
      seen.add(computation)
      for instruction in computations[computation]:
        owner[instruction.number] = mode
        pending.extend(instruction.called)
  return owner


class _Instruction(NamedTuple):
  opcode: bytes
  number: int
  called: list[int]  # computations


def _instruction(message: "_Message") -> _Instruction:
  packed = [number for data in message.parts(_CALLED) for number in _varints(data)]
  return _Instruction(
    b"".join(message.parts(_OPCODE)[-1:]),
    message.number(_INSTRUCTION_ID),
    [*message.numbers(_CALLED), *packed],
  )


def _touched(data: bytes, owner: dict[int, Mode]) -> dict[str, int]:
  """Bytes of temporaries that each mode needs, from the serialized buffer assignment."""
  assignment = _Message(data)
  defined_by: dict[int, int] = {}
  for buffer in assignment.messages(_BUFFERS):
    [location] = buffer.messages(_DEFINED_AT)
    defined_by[buffer.number(_BUFFER_ID)] = location.number(_DEFINED_BY)
  out = {mode.name.lower(): 0 for mode in Mode}
  for allocation in assignment.messages(_ALLOCATIONS):
    if any(allocation.number(n) for n in _NOT_TEMPORARY):
      continue
    spans: dict[Mode, list[tuple[int, int]]] = {mode: [] for mode in Mode}
    for assigned in allocation.messages(_ASSIGNED):
      mode = owner.get(defined_by[assigned.number(_ASSIGNED_ID)])
      if mode is not None:
        offset = assigned.number(_OFFSET)
        spans[mode].append((offset, offset + assigned.number(_SIZE)))
    for mode, ranges in spans.items():
      out[mode.name.lower()] += _union(ranges)
  return out


def _union(spans: list[tuple[int, int]]) -> int:
  """Length of the union of intervals."""
  total = reached = 0
  for start, end in sorted(spans):
    total += max(0, end - max(start, reached))
    reached = max(reached, end)
  return total


class _Message:
  """A protobuf message, with fields accessed by number."""

  def __init__(self, data: bytes):
    self._numbers: dict[int, list[int]] = {}
    self._parts: dict[int, list[bytes]] = {}
    at = 0
    while at < len(data):
      key, at = _varint(data, at)
      field, wire = key >> 3, key & 7
      if wire == 0:
        number, at = _varint(data, at)
        self._numbers.setdefault(field, []).append(number)
        continue
      if wire == 2:
        size, at = _varint(data, at)
      elif wire in (1, 5):
        size = 8 if wire == 1 else 4
      else:
        raise ValueError(f"wire type {wire}")
      self._parts.setdefault(field, []).append(data[at : at + size])
      at += size

  def numbers(self, field: int) -> list[int]:
    """The varints of a field (not of a packed one)."""
    return self._numbers.get(field, [])

  def number(self, field: int) -> int:
    """The varint of a singular field; 0, protobuf's default, if absent."""
    return [0, *self.numbers(field)][-1]

  def parts(self, field: int) -> list[bytes]:
    """The strings, submessages or packed numbers of a field, as bytes."""
    return self._parts.get(field, [])

  def messages(self, field: int) -> Iterator["_Message"]:
    """The messages of a field."""
    return map(_Message, self.parts(field))


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
