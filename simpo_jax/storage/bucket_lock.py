"""A lease on a folder in a bucket, where no lock is released when its holder dies.

The holder rewrites an object every few seconds (a heartbeat). Any other process that wants the
folder watches the object: if it changes, the holder is alive; if not, the lease has expired and
is taken over. A holder suspended for so long that it lost its lease notices before it next writes.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time

from simpo_jax import storage

EVERY = 5.0  # seconds between heartbeats
PATIENCE = 30.0  # seconds without one after which another process may take the lease


class Held(Exception):
  """Another process holds the claim, and is alive."""


class Lease:
  """Claims `path`, an object, until `close` or the end of the process.

  Raises:
    Held: someone else does.
  """

  def __init__(self, path: storage.Path):
    self._path, self._token = path, f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"
    self._ended = threading.Event()
    self._watch()
    self._count = 0
    self._beat()
    self._thread = threading.Thread(target=self._beats, name="lease", daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Raises an OSError if the claim is another's by now."""
    holder = (self._read() or {}).get("holder")
    if holder != self._token:
      raise OSError(f"{holder} has taken it over" if holder else "its .lock is gone")

  def close(self) -> None:
    """Gives the claim up."""
    self._ended.set()
    self._thread.join()
    with contextlib.suppress(*storage.failures()):
      self.check()
      self._path.unlink()

  def _watch(self) -> None:
    """Returns once nobody holds the claim."""
    before, start = self._read(), time.monotonic()
    if before is None:
      return
    print(f"watching {self._path} for {PATIENCE:.0f} s: is its holder alive?", file=sys.stderr)
    while time.monotonic() < start + PATIENCE:
      time.sleep(min(1.0, PATIENCE / 10))
      now = self._read()
      if now is None:
        return
      if now != before:
        raise Held(now.get("holder"))

  def _read(self) -> dict | None:
    try:
      # In one request: between two, a beat may have put another object there.
      return json.loads(storage.filesystem(self._path).cat_file(str(self._path)))
    except FileNotFoundError:
      return None
    except ValueError:
      return {}

  def _beat(self) -> None:
    self._count += 1
    storage.write(self._path, json.dumps({"holder": self._token, "count": self._count}))

  def _beats(self) -> None:
    while not self._ended.wait(EVERY):
      with contextlib.suppress(*storage.failures()):  # the next one may come through
        self.check()
        self._beat()
