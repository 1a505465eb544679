"""The one place that launches the program: ledger in, report checked, time taken."""

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
  """Some host asked to stop, and every host has seen it in the same launch, which did nothing.

  Attributes:
    state: the train state, as it was before the launch.
  """

  def __init__(self, state: TrainState):
    super().__init__("a stop was requested")
    self.state = state


@dataclasses.dataclass
class Launcher:
  """Launches the compiled program and keeps the record of it.

  Attributes:
    program: its sizes.
    compiled: the one executable.
    digest: of config, data and prompts; the same on every host or the launch aborts.
    requests: the prompt set, as numpy arrays; put on the devices once, as is the empty batch
      passed to launches without one. The ledger row of such a launch has the requests' digest.
    watchdog: ends a launch that hangs.
    log: mode, seconds and start (since 1970, by this host's clock) of every launch so far.
    executables: fingerprints of the executables launched (whether anything else was compiled
      is what `compile_count` reports).
    save_asked: whether any host requested a checkpoint in the last launch; the same on all hosts.
  """

  program: ProgramConfig
  compiled: Compiled
  digest: tuple[int, int]
  requests: dataclasses.InitVar[Requests]
  watchdog: Watchdog
  log: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  executables: set[str] = dataclasses.field(default_factory=set)
  save_asked: bool = False

  def __post_init__(self, requests: Requests):
    shardings = input_shardings(self.program)
    self._batch_sharding, requests_sharding, self._ledger_sharding = shardings
    self._requests = put_inputs(requests, requests_sharding)
    self._request_contents = request_contents(requests)
    self._empty_batch = self._placed(empty_batch(self.program.batch, local_rows(self.program)))

  def __call__(
    self,
    state: TrainState,
    mode: Mode,
    batch: Batch | None = None,
    pairs: Contents | None = None,
    stop: bool = False,
    save: bool = False,
  ) -> tuple[TrainState, Report, float]:
    """One launch, waited for.

    Args:
      state: donated.
      batch: numpy, for TRAIN and EVALUATE; this process's rows of it.
      pairs: of the whole batch, on all hosts; see `packing.pair_contents`.
      stop: this host wants the run to end now. Then the launch does nothing on any
        host, and `StopRequested` is raised on all of them.
      save: this host wants a checkpoint after this launch; see `save_asked`.

    Returns:
      The new state, the report, and the seconds it took.

    Raises:
      UserError: the hosts did not agree on the launch; says who wanted what.
      Interrupted: another host was lost.
      StopRequested: some host has asked for the end of the run.
    """
    start = time.perf_counter()
    assert (batch is None) == (pairs is None), "a batch comes with its contents"
    contents = self._request_contents if pairs is None else pairs
    row = make_row(mode, len(self.log), self.digest, contents.words, stop, save)
    placed = self._empty_batch if batch is None else self._placed(batch)
    state, report = self._run(mode.name.lower(), state, placed, row)
    seconds = time.perf_counter() - start
    rows = np.asarray(report.ledger)
    disagreement = describe_disagreement(rows)
    stopped = not disagreement and bool(rows[:, STOP].any())
    self.save_asked = not disagreement and bool(rows[:, SAVE].any())
    self._note("stop" if stopped else Mode(int(report.mode)).name.lower(), seconds)
    if disagreement:
      if (rows[:, 0] == rows[0, 0]).all() and (rows[:, DATA] != rows[0, DATA]).any():
        disagreement += f"; {self._other_contents(contents)}"
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
    """Calls the program with this host's row of the ledger, watched and profiled; waits for it."""
    hosts = self.program.mesh.shape["host"]
    # Every process fills only its own row: the callback is asked for no other.
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
    except Exception as e:  # of many types, by backend
      if lost := distributed.peer_failure(f"in launch {len(self.log)} ({name})"):
        raise lost from e
      raise

  def _note(self, ran: str, seconds: float) -> None:
    self.executables.add(self.compiled.fingerprint)
    began = round(time.time() - seconds, 3)
    self.log.append({"mode": ran, "seconds": round(seconds, 4), "start": began})

  def _other_contents(self, contents: Contents) -> str:
    """Whose data differs, and where; every host has seen that it does, so all ask."""
    name = f"contents of launch {len(self.log) - 1}"
    texts = distributed.gather(name, json.dumps(contents.items))
    return describe_contents([[tuple(item) for item in json.loads(text)] for text in texts])

  def _placed(self, batch: Batch) -> Batch:
    return put_batch(self.program, batch, self._batch_sharding)
