"""The one place that launches the program: ledger in, report checked, time taken."""

import dataclasses
import signal
import sys
import time
from typing import Any

import jax
import numpy as np

from simpo_jax import distributed
from simpo_jax.data.packing import Batch, empty_batch
from simpo_jax.errors import UserError
from simpo_jax.generate import Requests
from simpo_jax.ledger import FIELDS, SAVE, STOP, Mode, describe_disagreement, make_row
from simpo_jax.program import (
  Compiled,
  ProgramConfig,
  Report,
  input_shardings,
  own_rows,
  place_batch,
  place_inputs,
)
from simpo_jax.train import TrainState
from simpo_jax.watchdog import Watchdog


@dataclasses.dataclass
class Launcher:
  """Launches the compiled program and keeps the record of it.

  Attributes:
    program: its sizes.
    compiled: the one executable.
    digest: of config, data and prompts; the same on every host or the launch aborts.
    requests: the prompt set, numpy; placed once, as is a batch for launches that need none.
    watchdog: ends a launch that hangs.
    log: mode, seconds and start (since 1970, by this host's clock) of every launch so far.
    executables: fingerprints of what was launched (that nothing else compiled is
      for `monitor.compile_count` to say).
    stopped: a host asked to stop, and every host has seen it in the same launch.
    save_asked: a host asked for a checkpoint after the last launch; so have all seen.
  """

  program: ProgramConfig
  compiled: Compiled
  digest: tuple[int, int]
  requests: dataclasses.InitVar[Requests]
  watchdog: Watchdog
  log: list[dict[str, Any]] = dataclasses.field(default_factory=list)
  executables: set[str] = dataclasses.field(default_factory=set)
  stopped: bool = False
  save_asked: bool = False

  def __post_init__(self, requests: Requests):
    shardings = input_shardings(self.program)
    self._batch_sharding, requests_sharding, self._ledger_sharding = shardings
    self._requests = place_inputs(requests, requests_sharding)
    self._idle = self._placed(empty_batch(self.program.batch, own_rows(self.program)))

  def __call__(
    self,
    state: TrainState,
    mode: Mode,
    batch: Batch | None = None,
    stop: bool = False,
    save: bool = False,
  ) -> tuple[TrainState, Report, float]:
    """One launch, waited for.

    Args:
      state: donated.
      batch: numpy, for TRAIN and EVALUATE; this process's rows of it.
      stop: this host wants the run to end now. Then the launch does nothing on any
        host, and `stopped` becomes true on all of them.
      save: this host wants a checkpoint after this launch; see `save_asked`.

    Returns:
      The new state, the report, and the seconds it took.

    Raises:
      UserError: the hosts did not agree on the launch; says who wanted what.
      Interrupted: another host was lost.
    """
    start = time.perf_counter()
    row = make_row(mode, len(self.log), self.digest, stop, save)
    hosts = self.program.mesh.shape["host"]
    # Every process fills only its own row: the callback is asked for no other.
    ledger = jax.make_array_from_callback(
      (hosts, len(FIELDS)),
      self._ledger_sharding,
      lambda index: np.broadcast_to(row, (hosts, len(FIELDS)))[index],
    )
    placed = self._idle if batch is None else self._placed(batch)
    name = mode.name.lower()
    try:
      with (
        self.watchdog.watching(name, self.log, row.tolist()),
        jax.profiler.StepTraceAnnotation(f"simpo_jax {name}", step_num=len(self.log)),
      ):
        state, report = self.compiled.call(state, placed, self._requests, ledger)
        report = jax.block_until_ready(report)
    except Exception as e:  # of many types, by backend
      if lost := distributed.explain(f"in launch {len(self.log)} ({name})"):
        raise lost from e
      raise
    seconds = time.perf_counter() - start
    self.executables.add(self.compiled.fingerprint)
    rows = np.asarray(report.ledger)
    disagreement = describe_disagreement(rows)
    self.stopped = not disagreement and bool(rows[:, STOP].any())
    self.save_asked = not disagreement and bool(rows[:, SAVE].any())
    ran = "stop" if self.stopped else Mode(int(report.mode)).name.lower()
    began = round(time.time() - seconds, 3)
    self.log.append({"mode": ran, "seconds": round(seconds, 4), "start": began})
    if disagreement:
      raise UserError(
        f"the hosts disagree on launch {len(self.log) - 1}, nothing was changed: "
        f"{disagreement}; start all hosts with the same command"
      )
    return state, report, seconds

  def _placed(self, batch: Batch) -> Batch:
    return place_batch(self.program, batch, self._batch_sharding)


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

  def _handle(self, number, _):
    self.requested = True
    print(
      f"{signal.Signals(number).name}: stopping after the launch in progress; "
      "once more to end at once",
      file=sys.stderr,
      flush=True,
    )
    signal.signal(number, signal.SIG_DFL)
