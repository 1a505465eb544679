"""A launch that takes far too long ends the process, with the evidence, instead of hanging."""

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
  """Times every launch against what launches of its mode have taken before.

  Args:
    folder: where a file with the stacks of all threads goes, one per process.
  """

  def __init__(self, config: WatchdogSettings, folder: storage.Path):
    self._config = config
    self._file = folder / f"watchdog_host_{jax.process_index():04d}.txt"

  def limit(self, mode: str, log: list[dict[str, Any]]) -> float | None:
    """Seconds that a launch may take; None for any time.

    Args:
      mode: of the launch.
      log: mode and seconds of every launch so far.
    """
    if not self._config.factor:
      return None
    times = [entry["seconds"] for entry in log if entry["mode"] == mode]
    if not times:
      return self._config.first_seconds
    return max(self._config.least_seconds, self._config.factor * max(times))

  @contextlib.contextmanager
  def watching(self, mode: str, log: list[dict[str, Any]], row: list[int]):
    """Ends the process (exit code 75) if the body takes longer than the limit."""
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
      "the run again to go on, or raise --config.watchdog.factor, .least_seconds or .first_seconds",
    )
