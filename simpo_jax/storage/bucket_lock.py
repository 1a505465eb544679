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

HEARTBEAT_SECONDS = 5.0
EXPIRY_SECONDS = 30.0  # without a heartbeat; after that, another process may take the lease


class Held(Exception):
  """Another process holds the lease and is alive."""


class Lease:
  """A lease on the object `path`, held until `close` or the end of the process.

  Raises:
    Held: another process holds it.
  """

  def __init__(self, path: storage.Path):
    self._path, self._token = path, f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(8)}"
    self._closed = threading.Event()
    self._wait_until_free()
    self._count = 0
    self._write_heartbeat()
    self._thread = threading.Thread(target=self._write_heartbeats, name="lease", daemon=True)
    self._thread.start()

  def check(self) -> None:
    """Raises an OSError if this process has lost the lease."""
    holder = (self._read() or {}).get("holder")
    if holder != self._token:
      raise OSError(f"{holder} has taken it over" if holder else "its .lock is gone")

  def close(self) -> None:
    """Releases the lease."""
    self._closed.set()
    self._thread.join()
    with contextlib.suppress(*storage.failures()):
      self.check()
      self._path.unlink()

  def _wait_until_free(self) -> None:
    """Returns once no live process holds the lease; raises `Held` at a heartbeat."""
    before, start = self._read(), time.monotonic()
    if before is None:
      return
    print(
      f"watching {self._path} for {EXPIRY_SECONDS:.0f} s: is its holder alive?", file=sys.stderr
    )
    while time.monotonic() < start + EXPIRY_SECONDS:
      time.sleep(min(1.0, EXPIRY_SECONDS / 10))
      now = self._read()
      if now is None:
        return
      if now != before:
        raise Held(now.get("holder"))

  def _read(self) -> dict | None:
    try:
      # One request: between two, a heartbeat may replace the object.
      return json.loads(storage.filesystem(self._path).cat_file(str(self._path)))
    except FileNotFoundError:
      return None
    except ValueError:
      return {}

  def _write_heartbeat(self) -> None:
    self._count += 1
    storage.write(self._path, json.dumps({"holder": self._token, "count": self._count}))

  def _write_heartbeats(self) -> None:
    while not self._closed.wait(HEARTBEAT_SECONDS):
      with contextlib.suppress(*storage.failures()):  # the next one may succeed
        self.check()
        self._write_heartbeat()
