"""A tracker that talks to a server, in a process of its own.

What it imports, starts, patches, prints or registers for the exit is not in the run's
process, and what hangs there can be ended.
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
_PATIENCE = 120  # seconds for an answer; a login over a bad line may take a minute


class Service:
  """One tracker of `service_worker`.

  Args:
    name: "wandb" or "mlflow".
    workdir: keeps the tracker's own run id, and a log, in its folder `tracking`.
    config: of the run, as config.json has it.
  """

  def __init__(self, name: str, workdir: storage.Path, config: dict[str, Any]):
    self._name, self._workdir, self._config = name, workdir, config
    folder = workdir / "tracking"
    folder.mkdir(exist_ok=True)
    self._log = folder / f"{name}.log"
    # -P: neither the files beside it nor a folder such as ./wandb are modules.
    # Of a session of its own: ^C and signals to the group are for the run.
    with open(self._log, "ab") as log:
      self._process = subprocess.Popen(
        [sys.executable, "-P", str(_WORKER), name, str(folder / f"{name}.json")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        start_new_session=True,
      )
    requests, answers = self._process.stdin, self._process.stdout
    assert requests and answers  # both are pipes
    self._requests, self._answers = requests, answers

  def open(self) -> int:
    """Joins the tracker's run, or begins one; returns the number of the last row that it has."""
    return self._ask("open", folder=str(self._workdir), config=self._config)["rows"]

  def write(self, entry: Entry) -> None:
    """Hands a row over, and waits until the tracker has taken it."""
    self._ask(
      "write",
      number=entry.number,
      step=entry.row["step"],
      group=entry.row["mode"],
      scalars=entry.scalars,
      histograms={name: values.tolist() for name, values in entry.histograms.items()},
      samples=entry.samples,
    )

  def close(self, status: str) -> None:
    """Ends the tracker's run: "done", "stopped" or "failed"."""
    self._ask("close", status=status)
    self._requests.close()
    self._process.wait()

  def abandon(self) -> None:
    """Ends the process by force, from any thread."""
    with contextlib.suppress(ProcessLookupError):
      os.killpg(self._process.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
      self._process.wait(1)

  def _ask(self, what: str, **message: Any) -> dict[str, Any]:
    try:
      self._requests.write(json.dumps({"do": what, **message}).encode() + b"\n")
      self._requests.flush()
      answer = self._answer()
    except BrokenPipeError:
      answer = b""
    if not answer:
      raise RuntimeError(f"its process ended with code {self._process.wait()}; see {self._log}")
    answer = json.loads(answer)
    if "failed" in answer:
      raise RuntimeError(answer["failed"])
    return answer

  def _answer(self) -> bytes:
    with selectors.DefaultSelector() as selector:
      selector.register(self._answers, selectors.EVENT_READ)
      # Second by second: a machine that was asleep has not waited.
      if not any(selector.select(1) for _ in range(_PATIENCE)):
        raise TimeoutError(f"no answer for {_PATIENCE} s")
    return self._answers.readline()
