"""Small arithmetic of sizes and of sequences of ids."""

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import numpy as np

_Number = TypeVar("_Number", int, np.ndarray, jax.Array)


def ceil_div(a: _Number, b: Any) -> _Number:
  """a / b, rounded up; of ints, numpy and jax arrays alike."""
  return -(-a // b)


def round_up(a: int, multiple: int) -> int:
  """The smallest multiple that is at least a."""
  return ceil_div(a, multiple) * multiple


def common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
  """How many first items two sequences have in common."""
  for i, (x, y) in enumerate(zip(a, b, strict=False)):
    if x != y:
      return i
  return min(len(a), len(b))
