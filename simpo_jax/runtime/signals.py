"""SIGTERM and ^C: the run ends after the launch in progress, on all hosts, and is saved."""

import signal
import sys


class StopSignal:
  """Remembers the first SIGTERM or SIGINT; the second one ends the process at once."""

  def __init__(self):
    self.requested = False

  def __enter__(self):
    self._before = {s: signal.signal(s, self._handle) for s in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *_):
    for number, handler in self._before.items():
      signal.signal(number, handler)

  def _handle(self, number: int, _: object) -> None:
    self.requested = True
    print(
      f"{signal.Signals(number).name}: stopping after the launch in progress; "
      "once more to end at once",
      file=sys.stderr,
      flush=True,
    )
    signal.signal(number, signal.SIG_DFL)
