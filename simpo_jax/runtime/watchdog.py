"""Ends the process if a launch hangs, with stack traces in a file."""

import contextlib
import faulthandler
import sys
import tempfile
import threading
from typing import Any

import jax

from simpo_jax import distributed, storage
from simpo_jax.errors import Interrupted
from simpo_jax.settings import WatchdogSettings


class Watchdog:
  """Limits the time of each launch by that of earlier launches of its mode.

  Args:
    folder: the workdir; each process writes the stack traces of its threads to a file there.
  """

  def __init__(self, config: WatchdogSettings, folder: storage.Path):
    self._config = config
    self._file = folder / f"watchdog_host_{jax.process_index():04d}.txt"

  def limit(self, mode: str, log: list[dict[str, Any]]) -> float | None:
    """Returns the seconds that a launch may take; None: no limit.

    Args:
      mode: of the launch.
      log: mode and seconds of every launch so far, as in `Launcher.log`.
    """
    if not self._config.factor:
      return None
    times = [entry["seconds"] for entry in log if entry["mode"] == mode]
    if not times:
      return self._config.first_seconds
    return max(self._config.least_seconds, self._config.factor * max(times))

  @contextlib.contextmanager
  def watching(self, mode: str, log: list[dict[str, Any]], row: list[int]):
    """Ends the process (exit code 75) if the body takes longer than the limit.

    Args:
      row: this host's ledger row, for the message.
    """
    seconds = self.limit(mode, log)
    if seconds is None:
      yield
      return
    timer = threading.Timer(seconds, self.on_timeout, (seconds, mode, log, row))
    timer.daemon = True
    timer.start()
    try:
      yield
    finally:
      timer.cancel()

  def on_timeout(
    self, seconds: float, mode: str, log: list[dict[str, Any]], row: list[int]
  ) -> None:
    """Writes the stack traces and ends the process; called by a timer's thread."""
    with contextlib.suppress(*storage.failures()), tempfile.TemporaryFile("w+") as f:
      f.write(f"launch {len(log)} ({mode}) took more than {seconds:.0f} s\n")
      f.write(f"this host's ledger row: {row}\nlaunches before it: {log}\n\n")
      f.flush()
      faulthandler.dump_traceback(f, all_threads=True)
      f.seek(0)
      storage.write(self._file, f.read())
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    distributed.end(
      Interrupted.exit_code,
      f"watchdog: launch {len(log)} ({mode}) took more than {seconds:.0f} s, so it hangs, or a "
      f"host has not come to it; ledger row {row}; stacks and launches are in {self._file}; start "
      "the run again to continue, or raise --config.watchdog.factor, .least_seconds or "
      ".first_seconds",
    )
