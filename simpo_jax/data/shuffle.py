"""For pairs in memory: the held-out split, and the order of the pairs in each epoch."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from simpo_jax.data.types import Message, PairTokens
from simpo_jax.errors import UserError
from simpo_jax.tokenizer.chat_template import placeholder


def split_by_row(
  pairs: Sequence[PairTokens], fraction: float, seed: int
) -> tuple[list[PairTokens], list[PairTokens]]:
  """Splits pairs by row, as earlier versions did, so that their runs can be resumed.

  Pairs of one prompt may be on both sides. Each part is in the given order. If `fraction` > 0 and
  there are at least two pairs, each part has at least one.

  Raises:
    UserError: `fraction` is outside [0, 1).
  """
  n = len(pairs)
  held = set(_permutation(n, "split", seed, 0)[: _held_out_count(n, fraction)].tolist())
  return [p for i, p in enumerate(pairs) if i not in held], [pairs[i] for i in sorted(held)]


def held_out_prompts(pairs: Iterable[PairTokens], fraction: float, seed: int) -> set[bytes]:
  """Chooses the prompts whose pairs are held out; about `fraction` of the pairs.

  If `fraction` > 0 and there are at least two prompts, at least one is chosen and one is not. If
  no two pairs have the same prompt, the pairs are those that `split_by_row` holds out.

  Returns:
    Their `prompt_key`s.

  Raises:
    UserError: `fraction` is outside [0, 1).
  """
  sizes = Counter(prompt_key(pair) for pair in pairs if fraction)
  count = _held_out_count(sizes.total(), fraction)
  if not count or len(sizes) < 2:
    return set()
  names, chosen, held = list(sizes), set(), 0
  order = _permutation(len(names), "split", seed, 0).tolist()
  for name in (names[i] for i in order):
    if held + sizes[name] <= count:
      chosen.add(name)
      held += sizes[name]
  return chosen or {min((names[i] for i in order), key=sizes.__getitem__)}


def prompt_key(pair: PairTokens) -> bytes:
  """Returns a digest of a pair's prompt, as tokens."""
  return hashlib.sha256(pair.prompt.astype("<i4").tobytes()).digest()[:16]


def prompt_fraction(prompt: str | Sequence[Message]) -> float:
  """Maps a prompt, as text or messages, to a number in [0, 1).

  Must never change, since it defines the splits of prepared datasets.
  """
  text = json.dumps(prompt, sort_keys=True, separators=(",", ":"), default=placeholder)
  return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def _held_out_count(n: int, fraction: float) -> int:
  if not 0 <= fraction < 1:
    raise UserError(f"data.eval_fraction must be at least 0 and below 1, not {fraction}")
  return min(max(1, round(n * fraction)), n - 1) if fraction and n > 1 else 0


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
