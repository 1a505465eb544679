"""Prefetches packed batches in threads while the devices run earlier steps."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Generic, NamedTuple, TypeVar

from simpo_jax.data.packing import lay_out, pair_contents, row_members
from simpo_jax.data.skip_report import SkipReport
from simpo_jax.data.steps import Window, step_source
from simpo_jax.data.types import PairTokens
from simpo_jax.program.ledger import Contents
from simpo_jax.train.batch import Batch, BatchShape

T = TypeVar("T")

_READY_BATCHES = 2  # batches to prepare ahead of the current step
_READY_WINDOWS = 1  # windows to read and tokenize ahead of the current one


class Prefetcher(Generic[T]):
  """Computes `make(index)` in a thread for the indices after the last requested one.

  Any index may be requested at any time, but only the following ones are fast. An exception of
  `make` is raised to the caller who requests its index. As a context manager, it ends the thread.

  Args:
    make: a pure function of the index; never called concurrently.
    depth: how many indices after the last requested one are computed and kept.
  """

  def __init__(self, make: Callable[[int], T], depth: int):
    self._make, self._depth = make, depth
    self._results: dict[int, tuple[T] | BaseException] = {}
    self._requested = 0
    self._closed = False
    self._changed = threading.Condition()
    self._thread: threading.Thread | None = None

  def __call__(self, index: int) -> T:
    with self._changed:
      if self._closed:
        raise RuntimeError("called after the end of its context")
      self._requested = index
      self._results = {i: result for i, result in self._results.items() if self._in_range(i)}
      if self._thread is None:
        self._thread = threading.Thread(target=self._work, name="prefetch", daemon=True)
        self._thread.start()
      self._changed.notify_all()
      self._changed.wait_for(lambda: index in self._results)
      result = self._results[index]
    if isinstance(result, BaseException):
      raise result
    return result[0]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    with self._changed:
      self._closed = True
      self._changed.notify_all()

  def _in_range(self, index: int) -> bool:
    return self._requested <= index <= self._requested + self._depth

  def _next_missing(self) -> int | None:
    """The first index in range that has not been computed."""
    in_range = range(self._requested, self._requested + self._depth + 1)
    return next((i for i in in_range if i not in self._results), None)

  def _work(self) -> None:
    while True:
      with self._changed:
        self._changed.wait_for(lambda: self._closed or self._next_missing() is not None)
        index = self._next_missing()
        if self._closed or index is None:
          return
      try:
        result = (self._make(index),)
      except BaseException as error:  # raised in `__call__`
        result = error
      with self._changed:
        if self._in_range(index):
          self._results[index] = result
          self._changed.notify_all()


class StepBatch(NamedTuple):
  """The pairs of a step, and the packed batch of the local rows."""

  pairs: list[PairTokens]
  rows: int  # packed rows in use, over all hosts
  batch: Batch
  contents: Contents  # digests of the pairs, for the ledger
  report: SkipReport | None  # on the rows read for a window; only for the window's first step


@contextlib.contextmanager
def prefetch_batches(
  window: Callable[[int], Window], lookahead: int, shape: BatchShape, local: range
) -> Iterator[Callable[[int], StepBatch]]:
  """Yields a function from a step (from 1) to its batch, valid inside the context.

  Args:
    window: from `steps.window_source`.
    lookahead: the same as in `steps.window_source`.
    local: the rows of each micro-batch on this process's devices.
  """
  with Prefetcher(window, _READY_WINDOWS) as windows:
    pairs_of = step_source(windows, lookahead)

    def make(step: int) -> StepBatch:
      pairs, report = pairs_of(step)
      rows = row_members(pairs, shape)
      batch = lay_out(pairs, rows, shape, local)
      return StepBatch(pairs, len(rows), batch, pair_contents(pairs), report)

    with Prefetcher(make, _READY_BATCHES) as batches:
      yield batches
