"""Runs a tracker that talks to a server, in a subprocess of its own.

Its client library cannot affect the run (imports, threads, patches, output, exit handlers), and
can be killed if it hangs.
"""

import contextlib
import json
import os
import pathlib
import selectors
import signal
import subprocess
import sys
from typing import Any

from simpo_jax import storage
from simpo_jax.trackers.rows import Entry

_WORKER = pathlib.Path(__file__).with_name("service_worker.py")
_REPLY_SECONDS = 120  # timeout; a login over a slow connection may take a minute


class Service:
  """A `tracker.Writer` that forwards to a `service_worker` process.

  Args:
    name: "wandb" or "mlflow".
    workdir: its folder `tracking` stores the service's run id and a log.
    config: contents of config.json.
  """

  def __init__(self, name: str, workdir: storage.Path, config: dict[str, Any]):
    self._name, self._workdir, self._config = name, workdir, config
    folder = workdir / "tracking"
    folder.mkdir(exist_ok=True)
    self._log = folder / f"{name}.log"
    # -P keeps the script's and the current folder off sys.path: a run's ./wandb would shadow the
    # package. A new session: ^C and signals to the run's process group do not reach it.
    with open(self._log, "ab") as log:
      self._process = subprocess.Popen(
        [sys.executable, "-P", str(_WORKER), name, str(folder / f"{name}.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
      )
    requests, replies = self._process.stdin, self._process.stdout
    assert requests and replies  # both are pipes
    self._requests, self._replies = requests, replies

  def open(self) -> int:
    """Resumes or creates the server's run; returns the number of the last row that it has."""
    return self._call("open", folder=str(self._workdir), config=self._config)["rows"]

  def write(self, entry: Entry) -> None:
    """Sends a row, and waits until the service has accepted it."""
    self._call(
      "write",
      number=entry.number,
      step=entry.row["step"],
      group=entry.row["mode"],
      scalars=entry.scalars,
      histograms={name: values.tolist() for name, values in entry.histograms.items()},
      samples=entry.samples,
    )

  def close(self, status: str) -> None:
    """Ends the service's run with status "done", "stopped" or "failed"."""
    self._call("close", status=status)
    self._requests.close()
    self._process.wait()

  def abandon(self) -> None:
    """Kills the process; may be called from any thread."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(1)

  def _call(self, method: str, **message: Any) -> dict[str, Any]:
    try:
      self._requests.write(json.dumps({"do": method, **message}).encode() + b"\n")
      self._requests.flush()
      reply = self._read_reply()
    except BrokenPipeError:
      reply = b""
    if not reply:
      raise RuntimeError(f"its process ended with code {self._process.wait()}; see {self._log}")
    reply = json.loads(reply)
    if "failed" in reply:
      raise RuntimeError(reply["failed"])
    return reply

  def _read_reply(self) -> bytes:
    with selectors.DefaultSelector() as selector:
      selector.register(self._replies, selectors.EVENT_READ)
      # In steps of a second, so that time in which the machine was suspended does not count.
      if not any(selector.select(1) for _ in range(_REPLY_SECONDS)):
        raise TimeoutError(f"no answer for {_REPLY_SECONDS} s")
    return self._replies.readline()
