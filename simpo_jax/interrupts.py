"""Makes ^C reliable: a KeyboardInterrupt that other code swallows is raised again.

Python discards exceptions raised in finalizers and in callbacks of the garbage collector (JAX has
one), and some extension modules that run during compilation clear exceptions of other code.
"""

import os
import signal
import sys
import threading
from typing import NoReturn

from simpo_jax.errors import INTERRUPTED

_RETRY_SECONDS = 0.01  # raised at once, it would still be in the code that swallows it


class _Interrupt(KeyboardInterrupt):
  """Sends SIGINT again when it is deleted without having been acknowledged."""

  acknowledged = False

  def __del__(self):
    if not self.acknowledged and not sys.is_finalizing():
      main = threading.main_thread().ident
      retry = threading.Timer(_RETRY_SECONDS, signal.pthread_kill, (main, signal.SIGINT))
      retry.daemon = True
      retry.start()


def install_handler() -> None:
  """Makes each ^C raise until `acknowledge` or `exit_now`, unless the process ignores SIGINT."""
  if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _raise)
  hook = sys.unraisablehook
  sys.unraisablehook = lambda dropped: (
    None if issubclass(dropped.exc_type, _Interrupt) else hook(dropped)
  )


def acknowledge(error: KeyboardInterrupt) -> None:
  """Marks a ^C as handled; for code that catches it and continues."""
  if isinstance(error, _Interrupt):
    error.acknowledged = True


def exit_now() -> NoReturn:
  """Ends the process after a ^C without cleanup, which can crash during a compilation."""
  print("stopped by ^C", file=sys.stderr)
  sys.stdout.flush()
  sys.stderr.flush()
  os._exit(INTERRUPTED)


def _raise(*_):
  raise _Interrupt
