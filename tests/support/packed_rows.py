"""Rows of random packed pairs, for tests of attention over them."""

import numpy as np

from simpo_jax.data.packing import pack
from simpo_jax.data.types import PairTokens
from simpo_jax.train.batch import batch_shape


def packed_rows(rng: np.random.Generator, B: int, S: int):
  """k_start, k_end, positions `[B, S]` of B rows filled with pairs up to a random length."""
  lengths = []
  for _ in range(B):
    left = S - int(rng.integers(0, 30))  # the rest is padding
    while left > 12:
      total = int(rng.integers(12, min(left, 3 * S // 4) + 1))
      left -= total
      first, second = np.sort(rng.choice(np.arange(1, total), 2, replace=False))
      lengths.append((first, second - first, total - second))
  pairs = [PairTokens(str(i), *(np.zeros(n, np.int32) for n in x)) for i, x in enumerate(lengths)]
  batch = pack(pairs, batch_shape(len(pairs), S, slots=S, rows=len(pairs)))
  return tuple(x[0, :B] for x in (batch.k_start, batch.k_end, batch.positions))


def random_case(S: int, H: int, K: int, h: int, B: int = 2):
  """q, k, v, the cotangent of their attention (float32), and the mask of packed rows."""
  rng = np.random.default_rng(S + H)
  mask = packed_rows(rng, B, S)
  q, k, v, cotangent = (rng.normal(size=(B, S, n, h)).astype(np.float32) for n in (H, K, K, H))
  return (q * (64 / h) ** 0.5, k, v), cotangent, mask  # attention far from uniform
