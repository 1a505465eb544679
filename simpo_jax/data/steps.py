"""Assigns pairs to training steps, as a pure function of the seed and the step.

Every step has exactly `batch_size` pairs, in the order of the stream (`mixture.py`). Within a
window of steps, pairs are regrouped to fill rows: all pairs of the window are packed together, and
the rows are distributed so that each step gets its number of pairs. Nothing depends on the number
of devices or hosts. There is no iterator state to save: a resumed run requests its next step.
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
  """Returns a function from a window's number (from 0) to its pairs; see `step_source`.

  Args:
    read: from `mixture.open_stream`.
    row_length, slots: see `packing.assign_rows`.
    lookahead: steps per window; 0 or 1 keeps the order of the stream.
    seed: seed of the regrouping.
  """
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
  """Returns a function from a step (from 1) to its pairs and, for a window's first step, a report.

  Args:
    window: from `window_source`; its last two results are cached.
    lookahead: the same as in `window_source`.
  """
  size = max(1, lookahead)
  cached = functools.lru_cache(maxsize=2)(window)

  def pairs_of(step: int) -> tuple[list[PairTokens], SkipReport | None]:
    number, index = divmod(step - 1, size)
    result = cached(number)
    return result.steps[index], result.report if index == 0 else None

  return pairs_of


def balance_steps(
  lengths: list[int], steps: int, row_length: int, slots: int, seed: tuple[int, ...]
) -> list[list[int]]:
  """Distributes pairs evenly over steps so that rows are full; deterministic.

  Args:
    lengths: tokens of each pair in a row; their number must be a multiple of `steps`.
    row_length, slots: see `assign_rows`.
    seed: seed of the order of rows with equally many pairs, and of the order of steps.

  Returns:
    For each step, indices into `lengths`.
  """
  rows = assign_rows(lengths, row_length, slots)
  rng = np.random.default_rng(seed)
  waiting: dict[int, list[list[int]]] = {}  # {number of pairs: rows}
  for i in rng.permutation(len(rows)):
    waiting.setdefault(len(rows[i]), []).append(rows[i])
  by_step = []
  for done in range(steps):
    rows_per_step = round(sum(map(len, waiting.values())) / (steps - done))
    by_step.append(_take_rows(waiting, len(lengths) // steps, rows_per_step))
  return [by_step[i] for i in rng.permutation(steps)]


def _take_rows(waiting: dict[int, list[list[int]]], pairs: int, rows: int) -> list[int]:
  """Pops about `rows` rows with exactly `pairs` pairs in all from `waiting`; may split a row."""
  taken, left = [], pairs
  while left:
    rows_left = max(1, rows)
    max_pairs = left - rows_left + 1  # leaves at least one pair for each further row
    fitting = [n for n in waiting if waiting[n] and n <= max_pairs]
    if fitting:
      row = waiting[min(fitting, key=lambda n: (abs(n - left / rows_left), n))].pop()
    else:
      # All rows have too many pairs: split one, and leave the rest to another step.
      row = waiting[min(n for n in waiting if waiting[n])].pop()
      row, rest = row[:max_pairs], row[max_pairs:]
      waiting.setdefault(len(rest), []).append(rest)
    taken += row
    left -= len(row)
    rows -= 1
  return taken
