"""Which pairs a training step takes: a pure function of the seed, for any step at any time.

Every step has exactly `batch_size` pairs, and the steps walk through the epochs. Within a
window of steps pairs change places so that rows are full: the window's pairs are packed
as a whole, and its rows dealt out so that each step's pairs add up. Nothing depends on
the number of devices or hosts. No place in the data is kept: a resumed run asks for its next
step.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from simpo_jax.data.mixture import ReadPairs
from simpo_jax.data.packing import assign_rows, pair_length
from simpo_jax.data.skip_report import SkipReport
from simpo_jax.data.types import PairTokens


class Window(NamedTuple):
  """The pairs of `lookahead` consecutive steps, one list per step, with their skip report."""

  steps: list[list[PairTokens]]
  report: SkipReport | None


def window_source(
  read: ReadPairs, batch_size: int, row_length: int, slots: int, lookahead: int, seed: int
) -> Callable[[int], Window]:
  """The function from a window's number (from 0) to its steps; see `step_source`."""
  size = max(1, lookahead)

  def window(number: int) -> Window:
    pairs, report = read(number * size * batch_size, size * batch_size)
    if size == 1:
      return Window([pairs], report)
    lengths = [pair_length(p) for p in pairs]
    by_step = balance_steps(lengths, size, row_length, slots, (seed, number))
    return Window([[pairs[index] for index in indices] for indices in by_step], report)

  return window


def step_source(
  window: Callable[[int], Window], lookahead: int
) -> Callable[[int], tuple[list[PairTokens], SkipReport | None]]:
  """Returns a function: step (from 1) to its pairs and, for a window's first step, its report.

  Args:
    window: from `window_source`; its last two results are cached.
    lookahead: steps per window; 0 or 1 keeps the order of the stream.
  """
  size = max(1, lookahead)
  kept = functools.lru_cache(maxsize=2)(window)

  def pairs_of(step: int) -> tuple[list[PairTokens], SkipReport | None]:
    number, index = divmod(step - 1, size)
    found = kept(number)
    return found.steps[index], found.report if index == 0 else None

  return pairs_of


def balance_steps(
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
  by_step = [
    _take(waiting, len(lengths) // steps, round(sum(map(len, waiting.values())) / (steps - done)))
    for done in range(steps)
  ]
  return [by_step[i] for i in rng.permutation(steps)]


def _take(waiting: dict[int, list[list[int]]], pairs: int, rows: int) -> list[int]:
  """Pops about `rows` of the waiting rows, holding exactly `pairs` pairs; may split a row."""
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
