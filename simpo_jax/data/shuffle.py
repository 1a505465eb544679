"""The order of pairs: which are held out, and which a step trains on, by seed alone."""

from collections.abc import Sequence

import numpy as np

from simpo_jax.data.types import PairTokens
from simpo_jax.errors import UserError


def split_pairs(
  pairs: Sequence[PairTokens], fraction: float, seed: int
) -> tuple[list[PairTokens], list[PairTokens]]:
  """(train, held out), each in the given order; the same for a seed.

  At least one pair is held out if `fraction` > 0 and there are two, and at
  least one stays. Raises UserError for a fraction outside [0, 1).
  """
  if not 0 <= fraction < 1:
    raise UserError(f"data.eval_fraction must be at least 0 and below 1, not {fraction}")
  n = len(pairs)
  count = min(max(1, round(n * fraction)), n - 1) if fraction and n > 1 else 0
  held = set(_permutation(n, "split", seed, 0)[:count].tolist())
  return [p for i, p in enumerate(pairs) if i not in held], [pairs[i] for i in sorted(held)]


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
  """int64[n]: the order of the n pairs in an epoch (from 0), a permutation."""
  return _permutation(n, "epoch", seed, epoch)


def pair_indices_for_step(
  n: int, batch_size: int, seed: int, step: int, steps: int = 1
) -> np.ndarray:
  """int64[steps * batch_size]: the pairs of a step (from 1) and of those that follow it.

  A function of its arguments alone.

  Steps walk through epochs without a gap: a batch may end one and begin the
  next. Raises UserError if there are fewer pairs than a batch holds.
  """
  if n < batch_size:
    raise UserError(
      f"{n} pairs do not fill a batch of {batch_size}; lower train.batch_size or add data"
    )
  epochs, places = np.divmod(np.arange(steps * batch_size) + (step - 1) * batch_size, n)
  orders = {int(e): epoch_order(n, seed, int(e)) for e in np.unique(epochs)}
  return np.array([orders[int(e)][p] for e, p in zip(epochs, places, strict=True)], np.int64)


def _permutation(n: int, purpose: str, seed: int, epoch: int) -> np.ndarray:
  # Raw Philox bits, because numpy keeps those, unlike its shuffles, the same for
  # ever: a run resumed under another numpy sees the same batches.
  entropy = [*purpose.encode(), seed % 2**64, epoch]
  bits = np.random.Philox(np.random.SeedSequence(entropy)).random_raw(n)
  return np.argsort(bits, kind="stable")
