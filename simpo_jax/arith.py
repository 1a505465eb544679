"""Integer arithmetic and sequence helpers."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np

_Number = TypeVar("_Number", int, np.ndarray, jax.Array)


def ceil_div(a: _Number, b: Any) -> _Number:
  """Returns a / b rounded up, for ints, NumPy arrays and JAX arrays."""
  return -(-a // b)


def round_up(a: int, multiple: int) -> int:
  """Returns the smallest multiple of `multiple` that is at least `a`."""
  return ceil_div(a, multiple) * multiple


def common_prefix(a: Sequence[object], b: Sequence[object]) -> int:
  """Returns the length of the longest common prefix."""
  for i, (x, y) in enumerate(zip(a, b, strict=False)):
    if x != y:
      return i
  return min(len(a), len(b))
