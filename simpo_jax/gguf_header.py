"""A GGUF header checked against its file's size, before a reader makes objects of it.

The gguf package trusts the counts in a header: an array that claims 2**60 elements
keeps it busy, and growing, for ever. Here nothing is kept but the place and size of
every tensor. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import math
import mmap
import pathlib
import struct

import gguf

_SCALAR_BYTES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
_UINT32, _STRING, _ARRAY = 4, 8, 9
_MAX_FIELDS = _MAX_TENSORS = 2**16
# Of all arrays together: the reader makes objects of each, and the largest vocabularies
# have about a million tokens, scores, types and merges.
_MAX_ELEMENTS = 2**22
_MAX_NAME = 2**16  # bytes
_MAX_DIMENSIONS = 4


def check_header(path: pathlib.Path) -> None:
  """Walks the header once, in memory that does not depend on what it claims.

  Raises:
    ValueError: something in it does not fit into the file, is too much of its kind,
      or is an array of arrays (which models do not have).
    OSError: the file cannot be read.
  """
  if not path.is_file():  # opening a pipe would wait for ever
    raise ValueError("it is not a plain file")
  with (
    path.open("rb") as file,
    mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
  ):
    _walk(data)


def _walk(data: mmap.mmap) -> None:
  at, elements, order = 0, 0, "<"

  def skip(size: int) -> int:
    nonlocal at
    if size > len(data) - at:
      raise ValueError(f"it ends inside its header, at byte {len(data)}")
    at += size
    return at - size

  def take(layout: str) -> tuple[int, ...]:
    return struct.unpack_from(order + layout, data, skip(struct.calcsize(order + layout)))

  def count(what: str, most: int) -> int:
    (n,) = take("Q")
    if n > most:
      raise ValueError(f"it claims {n} {what}")
    return n

  def name() -> bytes:
    size = count("bytes of one name", _MAX_NAME)
    start = skip(size)
    return data[start : start + size]

  def value(kind: int) -> None:
    nonlocal elements
    if kind == _STRING:
      skip(take("Q")[0])
    elif kind == _ARRAY:
      (inner,) = take("I")
      n = count("elements of one array", _MAX_ELEMENTS)
      elements += n
      if elements > _MAX_ELEMENTS:
        raise ValueError(f"its arrays have more than {_MAX_ELEMENTS} elements")
      if inner == _STRING:
        for _ in range(n):
          skip(take("Q")[0])
      else:
        skip(n * _scalar_bytes(inner))
    else:
      skip(_scalar_bytes(kind))

  if data[skip(4) : 4] != b"GGUF":
    raise ValueError("GGUF magic invalid")
  version = data[skip(4) : at]
  order = "<" if version[:2] != b"\0\0" else ">"
  tensors = count("tensors", _MAX_TENSORS)
  alignment = gguf.GGUF_DEFAULT_ALIGNMENT
  for _ in range(count("metadata fields", _MAX_FIELDS)):
    key = name()
    (kind,) = take("I")
    start = at
    value(kind)
    if key == b"general.alignment" and kind == _UINT32:
      (alignment,) = struct.unpack_from(order + "I", data, start)
  places = [_tensor(name, take) for _ in range(tensors)]
  start = -(-at // max(alignment, 1)) * alignment
  for offset, size in places:
    if start + offset + size > len(data):
      raise ValueError(f"a tensor ends at byte {start + offset + size} of {len(data)}")


def _tensor(name, take) -> tuple[int, int]:
  """(offset, bytes) of the tensor whose description comes next."""
  name()
  (dimensions,) = take("I")
  if dimensions > _MAX_DIMENSIONS:
    raise ValueError(f"a tensor claims {dimensions} dimensions")
  shape = take(f"{dimensions}Q")
  kind, offset = take("IQ")
  block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
  return offset, math.prod(shape) * size // block


def _scalar_bytes(kind: int) -> int:
  if kind not in _SCALAR_BYTES:
    raise ValueError(f"it has a value of unknown kind {kind}")
  return _SCALAR_BYTES[kind]
