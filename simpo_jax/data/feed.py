"""Each step's packed batch, made in threads while the devices work on the steps before."""

import contextlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from simpo_jax.data.ahead import Ahead
from simpo_jax.data.packing import Batch, BatchShape, lay_out, row_members
from simpo_jax.data.pairs import PairTokens
from simpo_jax.data.skips import SkipReport
from simpo_jax.data.steps import Window, step_source

_BATCHES = 2  # steps whose batches are ready beyond the one in use
_WINDOWS = 1  # windows that are read and tokenised beyond the one in use


class StepBatch(NamedTuple):
  """A step's pairs, and their rows as the program takes them."""

  pairs: list[PairTokens]
  rows: int  # packed rows in use
  batch: Batch
  report: SkipReport | None  # of the rows read for the window that this step begins


@contextlib.contextmanager
def feeding(
  window: Callable[[int], Window], lookahead: int, shape: BatchShape, own: range
) -> Iterator[Callable[[int], StepBatch]]:
  """The function from a step (from 1) to its batch, any step at any time, while in the context.

  Args:
    window: from `steps.window_source`.
    lookahead: as it was given there.
    own: the rows of each micro-batch that lie on this process's devices.
  """
  with Ahead(window, _WINDOWS) as windows:
    pairs_of = step_source(windows, lookahead)

    def make(step: int) -> StepBatch:
      pairs, report = pairs_of(step)
      rows = row_members(pairs, shape)
      return StepBatch(pairs, len(rows), lay_out(pairs, rows, shape, own), report)

    with Ahead(make, _BATCHES) as batches:
      yield batches
