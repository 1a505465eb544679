"""The held-out split and the order of epochs of pairs that are held in memory; deterministic."""

from collections.abc import Sequence

import numpy as np

from simpo_jax.data.types import PairTokens
from simpo_jax.errors import UserError


def split_pairs(
  pairs: Sequence[PairTokens], fraction: float, seed: int
) -> tuple[list[PairTokens], list[PairTokens]]:
  """Splits pairs randomly into (train, held out), each in the given order.

  If `fraction` > 0 and there are at least two pairs, each part has at least one.

  Raises:
    UserError: `fraction` is outside [0, 1).
  """
  if not 0 <= fraction < 1:
    raise UserError(f"data.eval_fraction must be at least 0 and below 1, not {fraction}")
  n = len(pairs)
  count = min(max(1, round(n * fraction)), n - 1) if fraction and n > 1 else 0
  held = set(_permutation(n, "split", seed, 0)[:count].tolist())
  return [p for i, p in enumerate(pairs) if i not in held], [pairs[i] for i in sorted(held)]


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
  """Returns the permutation of n pairs in an epoch (from 0), int64[n]."""
  return _permutation(n, "epoch", seed, epoch)


def pair_indices_for_step(
  n: int, batch_size: int, seed: int, step: int, steps: int = 1
) -> np.ndarray:
  """Returns the indices of the pairs of `steps` steps, beginning with `step` (from 1).

  Consecutive steps cover consecutive epochs without gaps, so that a batch may span two epochs.

  Returns:
    int64[steps * batch_size].

  Raises:
    UserError: there are fewer pairs than a batch holds.
  """
  if n < batch_size:
    raise UserError(
      f"{n} pairs do not fill a batch of {batch_size}; lower train.batch_size or add data"
    )
  epochs, offsets = np.divmod(np.arange(steps * batch_size) + (step - 1) * batch_size, n)
  orders = {int(e): epoch_order(n, seed, int(e)) for e in np.unique(epochs)}
  return np.array([orders[int(e)][i] for e, i in zip(epochs, offsets, strict=True)], np.int64)


def _permutation(n: int, purpose: str, seed: int, epoch: int) -> np.ndarray:
  # NumPy guarantees the raw bits of Philox, but not its shuffles, across versions, and a run may be
  # resumed with another version.
  entropy = [*purpose.encode(), seed % 2**64, epoch]
  bits = np.random.Philox(np.random.SeedSequence(entropy)).random_raw(n)
  return np.argsort(bits, kind="stable")
