"""metrics.jsonl, which is the record, and the trackers that show it elsewhere.

A row is in metrics.jsonl before the run goes on. To the trackers it goes through queues
that never make the run wait, each with a thread of its own; what goes wrong there is told
once, and the run goes on without that tracker. Nothing here touches a device.
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
from simpo_jax.trackers.rows import Entry, entries_of
from simpo_jax.trackers.service import Service
from simpo_jax.workdir import files

_WAITING = 1000  # rows that a slow tracker may be behind
_SERVICES = ("wandb", "mlflow")  # fields of config.tracking, modules, and extras of setup.py


class Writer(Protocol):
  """A tracker as its thread sees it; an error of any method is the end of it."""

  def open(self) -> int:
    """Gets ready; returns the number of the last row that the tracker has already."""
    ...

  def write(self, entry: Entry) -> None:
    """Takes a row."""
    ...

  def close(self, status: str) -> None:
    """The run is "done", "failed" or, to go on later, "stopped"."""
    ...

  def abandon(self) -> None:
    """Ends what may be hanging; called from another thread."""
    ...


class Tracking:
  """Writes the rows of a run, and has them shown.

  Args:
    config: of the run.
    folder: the workdir; its metrics.jsonl has what is to be kept of the run so far.
    say: tells the user something, from any thread.
    writes: whether this process does; others do nothing.

  Raises:
    UserError: a tracker is wanted and not installed.
  """

  def __init__(
    self, config: Settings, folder: storage.Path, say: Callable[[str], None], writes: bool = True
  ):
    self._folder, self._writes = folder, writes
    self._seconds = config.tracking.flush_seconds
    self._tracks: list[_Track] = []
    if not writes:
      return
    metrics = folder / "metrics.jsonl"
    size = storage.size(metrics)
    self._number = metrics.read_bytes().count(b"\n") if size else 0
    wanted = _writers(config, folder, size)
    self._tracks = [_Track(name, make, folder, size, say) for name, make in wanted.items()]

  def __call__(
    self,
    row: dict[str, Any],
    values: dict[str, np.ndarray] | None = None,
    samples: Sequence[dict[str, Any]] = (),
  ) -> None:
    """Appends a row to metrics.jsonl, and passes it on.

    Args:
      row: with "step" and "mode"; finite.
      values: of each pair or answer, for histograms.
      samples: as in the samples files, to be shown as text.

    Raises:
      UserError: metrics.jsonl cannot be written.
    """
    if not self._writes:
      return
    files.append_metrics(self._folder, row)
    self._number += 1
    entry = Entry(self._number, row, values or {}, tuple(samples))
    for track in self._tracks:
      track.put(entry)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.end("failed")

  def end(self, status: str) -> None:
    """Gives the trackers a little time to finish; nothing happens if that has been."""
    deadline = time.monotonic() + self._seconds
    for track in self._tracks:
      track.close(status)
    for track in self._tracks:
      track.join(deadline)

  @property
  def state(self) -> dict[str, dict[str, Any]]:
    """Of each tracker: rows that it has, rows left out because it was slow, what went wrong."""
    return {
      t.name: {"rows": t.rows, "dropped": t.dropped, "problem": t.problem} for t in self._tracks
    }


def _writers(config: Settings, folder: storage.Path, size: int) -> dict[str, Callable[[], Writer]]:
  """How to make each tracker that is wanted; what they import is imported in their threads."""
  options, plain = config.tracking, as_json(config)
  out: dict[str, Callable[[], Writer]] = {}

  def event_files(workdir: pathlib.Path) -> Writer:
    from simpo_jax.trackers.tensorboard import EventFiles

    return EventFiles(workdir, plain, size)

  if options.tensorboard and isinstance(folder, pathlib.Path):  # event files are appended to
    out["tensorboard"] = functools.partial(event_files, folder)
  for name in _SERVICES:
    if getattr(options, name):
      spec = importlib.util.find_spec(name)
      if spec is None or spec.origin is None:  # None, too, for a mere folder of that name
        raise UserError(
          f"--config.tracking.{name}=True, but {name} is not installed: pip install "
          f"'simpo_jax[{name}]', or leave it out"
        )
      out[name] = functools.partial(Service, name, folder, plain)
  return out


class _Track:
  """One tracker: its queue, its thread, and how it is doing.

  Attributes:
    rows: that the tracker has.
    dropped: rows that it was too slow for.
    problem: why it is off.
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
    # With room for the end, whatever waits before it.
    self._queue: queue.Queue[Entry | str] = queue.Queue(_WAITING + 1)
    self._thread = threading.Thread(target=self._work, name=f"tracking {name}", daemon=True)
    self._thread.start()

  def put(self, entry: Entry) -> None:
    if self.problem is not None:
      return
    if self._queue.qsize() < _WAITING:
      self._queue.put_nowait(entry)
      return
    self.dropped += 1
    if self.dropped == 1:
      self._say(f"{self.name} is slower than the run: it misses rows that metrics.jsonl has")

  def close(self, status: str) -> None:
    """Has the tracker finish; see `join`."""
    if not self._closing:
      self._closing = True
      self._queue.put_nowait(status)

  def join(self, deadline: float) -> None:
    """Waits until then, and no longer; for a tracker that is off, not at all."""
    if self.problem is None:
      self._thread.join(max(0.0, deadline - time.monotonic()))
    if self._thread.is_alive():
      self._fail("not done in the time that it had at the end (--config.tracking.flush_seconds)")

  def _work(self) -> None:
    try:
      writer = self._writer = self._make()
      have = self.rows = writer.open()
      for entry in entries_of(self._folder, self._size, have):
        self._write(writer, entry)
      while not isinstance(item := self._queue.get(), str):
        if item.number > have:  # it may have seen rows that a run which goes on writes again
          self._write(writer, item)
      writer.close(item)
    except BaseException as error:  # of other people's code
      self._fail(one_line(error))

  def _write(self, writer: Writer, entry: Entry) -> None:
    writer.write(entry)
    self.rows += 1

  def _fail(self, problem: str) -> None:
    if self.problem is not None:
      return
    self.problem = problem
    with contextlib.suppress(OSError):  # the terminal may be a file on the same full disk
      self._say(f"{self.name} is off: {problem}; metrics.jsonl has every row")
    if self._writer is not None:
      self._writer.abandon()
