"""SIGTERM and ^C: all hosts stop after the launch in progress, and save a checkpoint."""

import signal
import sys


class StopSignal:
  """Records the first SIGTERM or SIGINT; the same signal again ends the process immediately."""

  def __init__(self):
    self.requested = False

  def __enter__(self):
    self._handlers = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *_):
    for number, handler in self._handlers.items():
      signal.signal(number, handler)

  def _handle(self, number: int, _: object) -> None:
    self.requested = True
    print(
      f"{signal.Signals(number).name}: stopping after the launch in progress; "
      "repeat to end immediately",
      file=sys.stderr,
      flush=True,
    )
    signal.signal(number, signal.SIG_DFL)
