"""Which pairs a training step takes: a pure function of the seed, for any step at any time.

Every step has exactly `batch_size` pairs, and the steps walk through the epochs. Within a
window of steps pairs change places so that rows are full: the window's pairs are packed
as a whole, and its rows dealt out so that each step's pairs add up. Nothing depends on
the number of devices or hosts.
"""

import functools
from collections.abc import Callable

import numpy as np

from simpo_jax.data.packing import assign_rows
from simpo_jax.data.pairs import pair_indices_for_step


def step_source(
  lengths: list[int], batch_size: int, row_length: int, slots: int, lookahead: int, seed: int
) -> Callable[[int], list[int]]:
  """The function from a step (from 1) to the indices of its pairs.

  Args:
    lengths: row tokens of every pair.
    batch_size: pairs of a step.
    row_length, slots: tokens and pairs that a row holds at most.
    lookahead: steps of a window; 0 or 1 keeps the order of the epochs.
  """
  size = max(1, lookahead)

  @functools.lru_cache(maxsize=2)
  def window(number: int) -> list[list[int]]:
    first = number * size + 1
    indices = pair_indices_for_step(len(lengths), batch_size, seed, first, size).tolist()
    if size == 1:
      return [indices]
    dealt = deal([lengths[i] for i in indices], size, row_length, slots, (seed, number))
    return [[indices[place] for place in places] for places in dealt]

  def pairs_of(step: int) -> list[int]:
    number, place = divmod(step - 1, size)
    return window(number)[place]

  return pairs_of


def deal(
  lengths: list[int], steps: int, row_length: int, slots: int, seed: tuple[int, ...]
) -> list[list[int]]:
  """Deals pairs out to steps, as many to each, so that their rows are full; deterministic.

  Args:
    lengths: row tokens of the pairs; a multiple of `steps` of them.
    row_length, slots: see `assign_rows`.
    seed: of the order in which rows of equally many pairs are dealt, and of the steps.

  Returns:
    Places in `lengths`, by step.
  """
  rows = assign_rows(lengths, row_length, slots)
  rng = np.random.default_rng(seed)
  waiting: dict[int, list[list[int]]] = {}  # rows by their number of pairs
  for i in rng.permutation(len(rows)):
    waiting.setdefault(len(rows[i]), []).append(rows[i])
  dealt = [
    _take(waiting, len(lengths) // steps, round(sum(map(len, waiting.values())) / (steps - done)))
    for done in range(steps)
  ]
  return [dealt[i] for i in rng.permutation(steps)]


def _take(waiting: dict[int, list[list[int]]], pairs: int, rows: int) -> list[int]:
  """Takes about `rows` of the waiting rows, with so many pairs in all."""
  taken, left = [], pairs
  while left:
    to_come = max(1, rows)
    most = left - to_come + 1  # at least a pair is left for each further row
    fitting = [n for n in waiting if waiting[n] and n <= most]
    if fitting:
      row = waiting[min(fitting, key=lambda n: (abs(n - left / to_come), n))].pop()
    else:
      # Every row has too many: a part of one, and the rest of it for another step.
      row = waiting[min(n for n in waiting if waiting[n])].pop()
      row, rest = row[:most], row[most:]
      waiting.setdefault(len(rest), []).append(rest)
    taken += row
    left -= len(row)
    rows -= 1
  return taken
