"""Writes metrics.jsonl, and forwards its rows to trackers such as TensorBoard or W&B.

Rows are appended to metrics.jsonl synchronously. Each tracker has a queue and a thread, and never
blocks the run; if one fails, the error is reported once and the run continues without it. Nothing
here touches a device.
"""

import contextlib
import functools
import importlib.util
import pathlib
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np

from simpo_jax import storage
from simpo_jax.config import as_json
from simpo_jax.errors import UserError, one_line
from simpo_jax.settings import Settings
from simpo_jax.trackers.rows import Entry, read_entries
from simpo_jax.trackers.service import Service
from simpo_jax.workdir import files

_MAX_QUEUED = 1000  # rows; a slower tracker loses rows
_SERVICES = ("wandb", "mlflow")  # names of config.tracking fields, modules, and setup.py extras


class Writer(Protocol):
  """The interface of a tracker. All methods but `abandon` run in its thread; errors disable it."""

  def open(self) -> int:
    """Prepares for writing; returns the number of the last row that the tracker already has."""
    ...

  def write(self, entry: Entry) -> None:
    """Writes a row."""
    ...

  def close(self, status: str) -> None:
    """Ends with status "done", "failed" or "stopped"; a stopped run can be resumed."""
    ...

  def abandon(self) -> None:
    """Cancels calls that may hang; called from another thread."""
    ...


class Tracking:
  """Writes the rows of a run to metrics.jsonl and to the enabled trackers.

  Args:
    config: the run's config.
    folder: the workdir; rows in its metrics.jsonl are kept, and sent to trackers that lack them.
    say: reports a message to the user; called from any thread.
    writes: whether this process writes; otherwise all methods do nothing.

  Raises:
    UserError: a tracker is enabled but not installed.
  """

  def __init__(
    self, config: Settings, folder: storage.Path, say: Callable[[str], None], writes: bool = True
  ):
    self._folder, self._writes = folder, writes
    self._seconds = config.tracking.flush_seconds
    self._trackers: list[_TrackerThread] = []
    if not writes:
      return
    metrics = folder / "metrics.jsonl"
    size = storage.size(metrics)
    self._number = metrics.read_bytes().count(b"\n") if size else 0
    self._trackers = [
      _TrackerThread(name, make, folder, size, say)
      for name, make in _factories(config, folder, size).items()
    ]

  def __call__(
    self,
    row: dict[str, Any],
    values: dict[str, np.ndarray] | None = None,
    samples: Sequence[dict[str, Any]] = (),
  ) -> None:
    """Appends a row to metrics.jsonl, and queues it for the trackers.

    Args:
      row: has "step" and "mode"; all numbers are finite.
      values: values per pair or answer for histograms, by name; arrays of shape [n].
      samples: rows as in the samples files, shown as text.

    Raises:
      UserError: metrics.jsonl cannot be written.
    """
    if not self._writes:
      return
    files.append_metrics(self._folder, row)
    self._number += 1
    entry = Entry(self._number, row, values or {}, tuple(samples))
    for tracker in self._trackers:
      tracker.put(entry)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.end("failed")

  def end(self, status: str) -> None:
    """Closes the trackers, waiting up to `tracking.flush_seconds`; later calls do nothing."""
    deadline = time.monotonic() + self._seconds
    for tracker in self._trackers:
      tracker.close(status)
    for tracker in self._trackers:
      tracker.join(deadline)

  @property
  def state(self) -> dict[str, dict[str, Any]]:
    """Rows written, rows dropped because the tracker was slow, and the error, by tracker."""
    return {
      t.name: {"rows": t.rows, "dropped": t.dropped, "problem": t.problem} for t in self._trackers
    }


def _factories(
  config: Settings, folder: storage.Path, size: int
) -> dict[str, Callable[[], Writer]]:
  """Returns a factory for each enabled tracker; it imports the tracker, in the tracker's thread."""
  options, plain = config.tracking, as_json(config)
  out: dict[str, Callable[[], Writer]] = {}

  def event_files(workdir: pathlib.Path) -> Writer:
    from simpo_jax.trackers.tensorboard import EventFiles

    return EventFiles(workdir, plain, size)

  if options.tensorboard and isinstance(folder, pathlib.Path):  # buckets cannot append
    out["tensorboard"] = functools.partial(event_files, folder)
  for name in _SERVICES:
    if getattr(options, name):
      spec = importlib.util.find_spec(name)
      if spec is None or spec.origin is None:  # origin is None for a plain folder of that name
        raise UserError(
          f"--config.tracking.{name}=True, but {name} is not installed: pip install "
          f"'simpo_jax[{name}]', or leave it out"
        )
      out[name] = functools.partial(Service, name, folder, plain)
  return out


class _TrackerThread:
  """One tracker with its queue and thread.

  Attributes:
    rows: number of rows that the tracker has.
    dropped: number of rows dropped because the queue was full.
    problem: the error that disabled the tracker, or None.
  """

  def __init__(
    self,
    name: str,
    make: Callable[[], Writer],
    folder: storage.Path,
    size: int,
    say: Callable[[str], None],
  ):
    self.name, self.rows, self.dropped = name, 0, 0
    self.problem: str | None = None
    self._make, self._folder, self._size, self._say = make, folder, size, say
    self._writer: Writer | None = None
    self._closing = False
    # One more than `_MAX_QUEUED`, so that `close` never blocks.
    self._queue: queue.Queue[Entry | str] = queue.Queue(_MAX_QUEUED + 1)
    self._thread = threading.Thread(target=self._run, name=f"tracking {name}", daemon=True)
    self._thread.start()

  def put(self, entry: Entry) -> None:
    if self.problem is not None:
      return
    if self._queue.qsize() < _MAX_QUEUED:
      self._queue.put_nowait(entry)
      return
    self.dropped += 1
    if self.dropped == 1:
      self._say(f"{self.name} is slower than the run and skips rows; metrics.jsonl has every row")

  def close(self, status: str) -> None:
    """Asks the tracker to finish its queue and close; see `join`."""
    if not self._closing:
      self._closing = True
      self._queue.put_nowait(status)

  def join(self, deadline: float) -> None:
    """Waits for the tracker until the deadline, then disables it; does not wait if it failed."""
    if self.problem is None:
      self._thread.join(max(0.0, deadline - time.monotonic()))
    if self._thread.is_alive():
      self._fail("did not finish within --config.tracking.flush_seconds")

  def _run(self) -> None:
    try:
      writer = self._writer = self._make()
      last_row = self.rows = writer.open()
      for entry in read_entries(self._folder, self._size, last_row):
        self._write(writer, entry)
      while not isinstance(item := self._queue.get(), str):
        if item.number > last_row:  # a resumed run writes some rows again
          self._write(writer, item)
      writer.close(item)
    except BaseException as error:  # third-party code may raise anything
      self._fail(one_line(error))

  def _write(self, writer: Writer, entry: Entry) -> None:
    writer.write(entry)
    self.rows += 1

  def _fail(self, problem: str) -> None:
    if self.problem is not None:
      return
    self.problem = problem
    with contextlib.suppress(OSError):  # output may go to a file on the same full disk
      self._say(f"{self.name} is off: {problem}; metrics.jsonl has every row")
    if self._writer is not None:
      self._writer.abandon()
