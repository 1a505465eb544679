"""Each step's packed batch, made in threads while the devices work on the steps before."""

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

_BATCHES = 2  # steps whose batches are ready beyond the one in use
_WINDOWS = 1  # windows that are read and tokenised beyond the one in use


class Prefetcher(Generic[T]):
  """`make(index)`, called in a thread for the indices that follow the one asked for last.

  Asking for any index is right at any time; only the next ones are quick. What `make`
  raises is raised to whoever asks for its index. Used as a context, the thread ends with it.

  Args:
    make: a pure function of the index; never called by two threads at once.
    depth: how many indices beyond the last one asked for are made and kept.
  """

  def __init__(self, make: Callable[[int], T], depth: int):
    self._make, self._depth = make, depth
    self._made: dict[int, tuple[T] | BaseException] = {}
    self._asked = 0
    self._closed = False
    self._changed = threading.Condition()
    self._thread: threading.Thread | None = None

  def __call__(self, index: int) -> T:
    with self._changed:
      if self._closed:
        raise RuntimeError("asked after its end")
      self._asked = index
      self._made = {i: made for i, made in self._made.items() if self._wanted(i)}
      if self._thread is None:
        self._thread = threading.Thread(target=self._work, name="ahead", daemon=True)
        self._thread.start()
      self._changed.notify_all()
      self._changed.wait_for(lambda: index in self._made)
      made = self._made[index]
    if isinstance(made, BaseException):
      raise made
    return made[0]

  def __enter__(self):
    return self

  def __exit__(self, *_):
    with self._changed:
      self._closed = True
      self._changed.notify_all()

  def _wanted(self, index: int) -> bool:
    return self._asked <= index <= self._asked + self._depth

  def _next(self) -> int | None:
    """The first wanted index that is not made yet."""
    wanted = range(self._asked, self._asked + self._depth + 1)
    return next((i for i in wanted if i not in self._made), None)

  def _work(self) -> None:
    while True:
      with self._changed:
        self._changed.wait_for(lambda: self._closed or self._next() is not None)
        index = self._next()
        if self._closed or index is None:
          return
      try:
        made = (self._make(index),)
      except BaseException as error:  # the asker's to handle
        made = error
      with self._changed:
        if self._wanted(index):
          self._made[index] = made
          self._changed.notify_all()


class StepBatch(NamedTuple):
  """A step's pairs, and their rows as the program takes them."""

  pairs: list[PairTokens]
  rows: int  # packed rows in use
  batch: Batch
  contents: Contents  # of the pairs, for the ledger
  report: SkipReport | None  # of the rows read for the window that this step begins


@contextlib.contextmanager
def prefetch_batches(
  window: Callable[[int], Window], lookahead: int, shape: BatchShape, local: range
) -> Iterator[Callable[[int], StepBatch]]:
  """The function from a step (from 1) to its batch, any step at any time, while in the context.

  Args:
    window: from `steps.window_source`.
    lookahead: as it was given there.
    local: the rows of each micro-batch that lie on this process's devices.
  """
  with Prefetcher(window, _WINDOWS) as windows:
    pairs_of = step_source(windows, lookahead)

    def make(step: int) -> StepBatch:
      pairs, report = pairs_of(step)
      rows = row_members(pairs, shape)
      batch = lay_out(pairs, rows, shape, local)
      return StepBatch(pairs, len(rows), batch, pair_contents(pairs), report)

    with Prefetcher(make, _BATCHES) as batches:
      yield batches
