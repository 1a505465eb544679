"""A ^C is not lost: one whose KeyboardInterrupt other code has dropped is raised again.

Python drops what is raised in a finalizer or in a callback of the garbage collector, of which jax
has one, and compiled modules that compilation goes through clear errors that they do not expect.
"""

import os
import signal
import sys
import threading
from typing import NoReturn

from simpo_jax.errors import INTERRUPTED

_PAUSE = 0.01  # seconds until it is raised again: at once it would be in the place that drops it


class _Interrupt(KeyboardInterrupt):
  """Comes again if nobody has taken note of it when it goes."""

  heard = False

  def __del__(self):
    if not self.heard and not sys.is_finalizing():
      main = threading.main_thread().ident
      again = threading.Timer(_PAUSE, signal.pthread_kill, (main, signal.SIGINT))
      again.daemon = True
      again.start()


def deliver() -> None:
  """From here on a ^C is raised until `heard` or `end`, unless the process ignores it."""
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _raise)
  drop = sys.unraisablehook
  sys.unraisablehook = lambda dropped: (
    None if issubclass(dropped.exc_type, _Interrupt) else drop(dropped)
  )


def heard(error: KeyboardInterrupt) -> None:
  """Says that this ^C was taken note of by code that goes on after it."""
  if isinstance(error, _Interrupt):
    error.heard = True


def end() -> NoReturn:
  """Ends the process after a ^C, at once: a compilation in progress would not survive its exit."""
  print("stopped by ^C", file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(INTERRUPTED)


def _raise(*_):
  raise _Interrupt
