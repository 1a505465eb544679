"""Damage to valid files, as hypothesis strategies: to JSON, to binary fields, to any bytes."""

import copy
import json
import struct

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from support.tiers import size


def examples(count):
  """Settings of a test: always the same examples, and no memory of earlier ones.

  There are so many with all tests (`-m ''`), and a tenth of them among the quick ones.
  """
  return settings(
    max_examples=size(count),
    derandomize=True,
    database=None,
    deadline=None,
    # Their metaclass says that they are of its own type.
    suppress_health_check=list(HealthCheck),  # pyright: ignore[reportArgumentType]
  )


_DEEP = json.loads("[" * 200 + "]" * 200)
# What readers trip over: signs, widths of integers, floats that are none, types, names that lead
# elsewhere, text that is no text.
JUNK = st.sampled_from(
  (None, True, False, 0, 1, -1, 2, 3, 255, 2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**63 - 1, 2**63,
   2**64 - 1, 2**64, 10**30, 0.5, -0.0, 1e-320, 1e308, float("inf"), float("-inf"), float("nan"),
   "", "a", "0", "-1", "F32", "BF16", "F8_E4M3", "llama", "default", "linear", "llama3", "\x00",
   "\ud800", "\x1b[2J", "\u202e", "a\nb", "../x", "..", ".", "/etc/passwd", "x" * 5000, "{{ x }}",
   [], {}, [[]], [0], [-1, 2], [2**40, 2**40], [0, 2**62], {"a": {}}, {"": None}, _DEEP)
).map(copy.deepcopy)  # fmt: skip


def _places(value, path=()):
  """The path of every part of a JSON value, its own included."""
  yield path
  if isinstance(value, (dict, list)):
    items = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in items:
      yield from _places(inner, (*path, key))


@st.composite
def damaged_json(draw, value):
  """A JSON value with one to three of its parts replaced, removed, renamed or swapped."""
  value = copy.deepcopy(value)
  for _ in range(draw(st.integers(1, 3))):
    *parents, key = draw(st.sampled_from([p for p in _places(value) if p] or [("",)]))
    inside = value
    for step in parents:
      inside = inside[step]
    if not isinstance(inside, (dict, list)) or not inside:
      return draw(JUNK)
    action = draw(st.integers(0, 5))
    if action == 0:
      del inside[key]
    elif action == 1 and isinstance(inside, dict):
      inside[str(draw(JUNK))] = inside.pop(key)
    elif action == 2:
      other = draw(
        st.sampled_from(list(inside) if isinstance(inside, dict) else range(len(inside)))
      )
      inside[key], inside[other] = inside[other], inside[key]
    else:
      inside[key] = draw(JUNK)
  return value


# Whole files that are no JSON, or more of it than a parser's stack holds.
EXTREMES = st.sampled_from(
  (b"", b"null", b"0", b"[" * 100_000, b'{"a":' * 50_000, b"9" * 5000, b"\xff\xfe{}", b"{}\x00")
)


@st.composite
def damaged_fields(draw, fields):
  """Binary fields (layout, value), with some replaced, removed or doubled.

  Layouts are those of `struct`, but for "s": bytes as they are.
  """
  fields = list(fields)
  for _ in range(draw(st.integers(1, 3))):
    at = draw(st.integers(0, len(fields) - 1))
    layout, value = fields[at]
    action = draw(st.integers(0, 7))
    if action == 0 and len(fields) > 1:
      del fields[at]
    elif action == 1:
      fields.insert(at, fields[at])
    elif layout == "s":
      fields[at] = (
        layout,
        draw(st.sampled_from((b"", b"\xff\xfe", value[:-1], value + b"\x00", value * 50))),
      )
    elif layout in "fd":
      fields[at] = layout, draw(st.floats(width=32))
    else:
      bits = 8 * struct.calcsize("<" + layout)
      low, high = (
        (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if layout.islower() else (0, 2**bits - 1)
      )
      near = st.sampled_from(
        (value - 1, value + 1, 2 * value, 0, 1, 2, 2**20, 2**40, high, high // 2)
      )
      wild = st.integers(low, high)
      number = draw(st.one_of(near, wild))
      fields[at] = layout, min(max(number, low), high)
  return fields


@st.composite
def damaged_bytes(draw, data):
  """Bytes cut short, with some flipped, or with others in between."""
  at = draw(st.integers(0, max(len(data) - 1, 0)))
  action = draw(st.integers(0, 3))
  if action == 0:
    return data[:at]
  if action == 1:
    return data[:at] + draw(st.binary(min_size=1, max_size=20)) + data[at:]
  out = bytearray(data)
  for place in draw(st.lists(st.integers(0, len(data) - 1), min_size=1, max_size=8)):
    out[place] ^= draw(st.one_of(st.integers(1, 127), st.just(128)))  # ASCII mostly stays ASCII
  return bytes(out)
