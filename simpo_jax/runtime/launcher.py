"""The only caller of the program: passes the ledger in, checks the report, measures the time."""

import dataclasses
import json
import time
from typing import Any

import jax
import numpy as np

from simpo_jax import distributed
from simpo_jax.errors import UserError
from simpo_jax.generate.requests import request_contents
from simpo_jax.generate.types import Requests
from simpo_jax.program.agreement import describe_contents, describe_disagreement
from simpo_jax.program.build import Compiled, Report
from simpo_jax.program.config import ProgramConfig
from simpo_jax.program.inputs import input_shardings, local_rows, put_batch, put_inputs
from simpo_jax.program.ledger import DATA, FIELDS, SAVE, STOP, Contents, Mode, make_row
from simpo_jax.runtime.watchdog import Watchdog
from simpo_jax.train.batch import Batch, empty_batch
from simpo_jax.train.step import TrainState


class StopRequested(Exception):
  """A host requested a stop; raised on all hosts, after a launch that left the state as it was.

  Attributes:
    state: the train state, unchanged by the launch.
  """

  def __init__(self, state: TrainState):
    super().__init__("a stop was requested")
    self.state = state


@dataclasses.dataclass
class Launcher:
  """Launches the compiled program and logs each launch.

  Attributes:
    program: sizes of the program.
    compiled: the executable.
    digest: of config, data and prompts; if it differs between hosts, a launch aborts.
    requests: numpy arrays, put on the devices once, like the empty batch for launches without
      a batch. The ledger row of those launches has the digest of the requests.
    watchdog: ends a launch that hangs.
    log: mode, seconds and start (seconds since 1970, by this host's clock) of every launch.
    executables: fingerprints of the executables launched; `compile_count` counts everything
      that was compiled.
    save_requested: whether any host requested a checkpoint in the last launch; equal on all hosts.
  """

  program: ProgramConfig
  compiled: Compiled
  digest: tuple[int, int]
  requests: dataclasses.InitVar[Requests]
  watchdog: Watchdog
  log: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  executables: set[str] = dataclasses.field(default_factory=set)
  save_requested: bool = False

  def __post_init__(self, requests: Requests):
    shardings = input_shardings(self.program)
    self._batch_sharding, requests_sharding, self._ledger_sharding = shardings
    self._requests = put_inputs(requests, requests_sharding)
    self._request_contents = request_contents(requests)
    self._empty_batch = self._put(empty_batch(self.program.batch, local_rows(self.program)))

  def __call__(
    self,
    state: TrainState,
    mode: Mode,
    batch: Batch | None = None,
    contents: Contents | None = None,
    stop: bool = False,
    save: bool = False,
  ) -> tuple[TrainState, Report, float]:
    """Launches the program and blocks until it is done.

    Args:
      state: donated.
      batch: for TRAIN and EVALUATE: this process's rows, numpy arrays.
      contents: of the global batch, from `packing.pair_contents`; given if a batch is.
      stop: requests the end of the run. The launch then does nothing on any host, and
        `StopRequested` is raised on all of them.
      save: requests a checkpoint after this launch; see `save_requested`.

    Returns:
      The new state, the report, and the seconds that the launch took.

    Raises:
      UserError: the hosts' ledger rows differ; the message names the hosts and fields.
      Interrupted: another host was lost.
      StopRequested: a host has requested a stop.
    """
    start = time.perf_counter()
    assert (batch is None) == (contents is None), "a batch comes with its contents"
    if contents is None:
      contents = self._request_contents
    row = make_row(mode, len(self.log), self.digest, contents.words, stop, save)
    device_batch = self._empty_batch if batch is None else self._put(batch)
    state, report = self._run(mode.name.lower(), state, device_batch, row)
    seconds = time.perf_counter() - start
    rows = np.asarray(report.ledger)
    disagreement = describe_disagreement(rows)
    stopped = not disagreement and bool(rows[:, STOP].any())
    self.save_requested = not disagreement and bool(rows[:, SAVE].any())
    self._log_launch("stop" if stopped else Mode(int(report.mode)).name.lower(), seconds)
    if disagreement:
      if (rows[:, 0] == rows[0, 0]).all() and (rows[:, DATA] != rows[0, DATA]).any():
        disagreement += f"; {self._describe_other_contents(contents)}"
      raise UserError(
        f"the hosts disagree on launch {len(self.log) - 1}, nothing was changed: "
        f"{disagreement}; start all hosts with the same command, files and packages"
      )
    if stopped:
      raise StopRequested(state)
    return state, report, seconds

  def _run(
    self, name: str, state: TrainState, batch: Batch, row: np.ndarray
  ) -> tuple[TrainState, Report]:
    """Calls the program under watchdog and profiler, and blocks until it is done.

    Args:
      row: this host's row of the ledger.
    """
    hosts = self.program.mesh.shape["host"]
    # The callback is only called for the rows on this process's devices, so only for this row.
    ledger = jax.make_array_from_callback(
      (hosts, len(FIELDS)),
      self._ledger_sharding,
      lambda index: np.broadcast_to(row, (hosts, len(FIELDS)))[index],
    )
    try:
      with (
        self.watchdog.watching(name, self.log, row.tolist()),
        jax.profiler.StepTraceAnnotation(f"simpo_jax {name}", step_num=len(self.log)),
      ):
        state, report = self.compiled.call(state, batch, self._requests, ledger)
        return state, jax.block_until_ready(report)
    except Exception as e:  # the type depends on the backend
      if lost := distributed.peer_failure(f"in launch {len(self.log)} ({name})"):
        raise lost from e
      raise

  def _log_launch(self, mode: str, seconds: float) -> None:
    self.executables.add(self.compiled.fingerprint)
    start = round(time.time() - seconds, 3)
    self.log.append({"mode": mode, "seconds": round(seconds, 4), "start": start})

  def _describe_other_contents(self, contents: Contents) -> str:
    """Says which hosts' data differs, and where. All hosts call this: all see the same ledger."""
    name = f"contents of launch {len(self.log) - 1}"
    texts = distributed.gather(name, json.dumps(contents.items))
    return describe_contents([[tuple(item) for item in json.loads(text)] for text in texts])

  def _put(self, batch: Batch) -> Batch:
    return put_batch(self.program, batch, self._batch_sharding)
