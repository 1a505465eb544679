"""Checks a GGUF header against the file's size before the gguf package parses it.

The gguf package trusts the counts in a header: for an array that claims 2**60 elements it
allocates memory without end. This check stores only the offset and size of every tensor,
and two strings. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import dataclasses
import math
import mmap
import pathlib
import struct

import gguf

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_MAX_FIELDS = _MAX_TENSORS = 2**16
# In all arrays together: the gguf package creates an object per element, and the largest
# vocabularies have about a million tokens, scores, types and merges.
_MAX_ELEMENTS = 2**22
_MAX_NAME = 2**16  # bytes
_MAX_DIMENSIONS = 4
TOKENIZER_MODEL, TOKENIZER_SPLIT = "tokenizer.ggml.model", "tokenizer.ggml.pre"


def check_header(path: pathlib.Path) -> dict[str, str]:
  """Parses the header once, in bounded memory.

  Returns:
    The values of the fields TOKENIZER_MODEL and TOKENIZER_SPLIT, if present.

  Raises:
    ValueError: a value or tensor extends beyond the file, a count exceeds its limit, or
      there is an array of arrays (which models do not have).
    OSError: the file cannot be read.
  """
  if not path.is_file():  # opening a pipe would block forever
    raise ValueError("it is not a plain file")
  with (
    path.open("rb") as file,
    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
  ):
    return _walk(data)


def _walk(data: mmap.mmap) -> dict[str, str]:
  header = _Cursor(data)
  texts: dict[str, str] = {}
  kept = (TOKENIZER_MODEL.encode(), TOKENIZER_SPLIT.encode())
  if data[header.skip(4) : 4] != b"GGUF":
    raise ValueError("GGUF magic invalid")
  version = data[header.skip(4) : header.at]
  header.order = "<" if version[:2] != b"\0\0" else ">"
  tensors = header.count("tensors", _MAX_TENSORS)
  alignment = gguf.GGUF_DEFAULT_ALIGNMENT
  for _ in range(header.count("metadata fields", _MAX_FIELDS)):
    key = header.name()
    (kind,) = header.take("I")
    start = header.at
    header.value(kind)
    if key == b"general.alignment" and kind == _UINT32:
      (alignment,) = struct.unpack_from(header.order + "I", data, start)
    if key in kept and kind == _STRING:
      end = min(header.at, start + _MAX_NAME)
      texts[key.decode()] = data[start + 8 : end].decode(errors="replace")
  extents = [header.tensor() for _ in range(tensors)]
  start = -(-header.at // max(alignment, 1)) * alignment
  for offset, size in extents:
    if start + offset + size > len(data):
      raise ValueError(f"a tensor ends at byte {start + offset + size} of {len(data)}")
  return texts


@dataclasses.dataclass
class _Cursor:
  """A position in the header; its methods raise ValueError at the end of the file."""

  data: mmap.mmap
  at: int = 0  # byte offset
  order: str = "<"  # byte order, as in `struct`
  elements: int = 0  # array elements so far

  def skip(self, size: int) -> int:
    """Skips `size` bytes; returns the offset where they start."""
    if size > len(self.data) - self.at:
      raise ValueError(f"it ends inside its header, at byte {len(self.data)}")
    self.at += size
    return self.at - size

  def take(self, layout: str) -> tuple[int, ...]:
    layout = self.order + layout
    return struct.unpack_from(layout, self.data, self.skip(struct.calcsize(layout)))

  def count(self, what: str, most: int) -> int:
    (n,) = self.take("Q")
    if n > most:
      raise ValueError(f"it claims {n} {what}")
    return n

  def name(self) -> bytes:
    size = self.count("bytes of one name", _MAX_NAME)
    start = self.skip(size)
    return self.data[start : start + size]

  def value(self, kind: int) -> None:
    if kind == _STRING:
      self.skip(self.take("Q")[0])
    elif kind == _ARRAY:
      self._array()
    else:
      self.skip(_scalar_bytes(kind))

  def _array(self) -> None:
    (inner,) = self.take("I")
    n = self.count("elements of one array", _MAX_ELEMENTS)
    self.elements += n
    if self.elements > _MAX_ELEMENTS:
      raise ValueError(f"its arrays have more than {_MAX_ELEMENTS} elements")
    if inner == _STRING:
      for _ in range(n):
        self.skip(self.take("Q")[0])
    else:
      self.skip(n * _scalar_bytes(inner))

  def tensor(self) -> tuple[int, int]:
    """Reads the next tensor's description; returns its (offset, bytes)."""
    self.name()
    (dimensions,) = self.take("I")
    if dimensions > _MAX_DIMENSIONS:
      raise ValueError(f"a tensor claims {dimensions} dimensions")
    shape = self.take(f"{dimensions}Q")
    kind, offset = self.take("IQ")
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    return offset, math.prod(shape) * size // block


def _scalar_bytes(kind: int) -> int:
  if kind not in _SCALAR_BYTES:
    raise ValueError(f"it has a value of unknown kind {kind}")
  return _SCALAR_BYTES[kind]
