"""When a run saves, and what its checkpoints say beside the train state."""

import json
import time
from typing import Any

import jax

from simpo_jax import storage
from simpo_jax import workdir as files
from simpo_jax.checkpoint import Position
from simpo_jax.checkpoint_orbax import Checkpoints
from simpo_jax.fingerprint import build_fields, versions
from simpo_jax.launch import Launcher
from simpo_jax.program import abstract_state
from simpo_jax.resolve import Run
from simpo_jax.resume import Start, checkpoints_folder
from simpo_jax.train import TrainState


class Saver:
  """Keeps a run's position, and saves it.

  Args:
    folder: the workdir.
    run: whose date and counts of skipped rows are kept.
    identity: see `fingerprint.identity_fields`.
    shared: whether all hosts see the workdir; if not, nothing is saved.

  Attributes:
    position: what is done of the schedule.
    bad_steps: training steps that were left out because they were not finite.
  """

  def __init__(
    self,
    config,
    folder: storage.Path,
    run: Run,
    launch: Launcher,
    start: Start,
    identity: dict[str, str],
    shared: bool,
  ):
    self._config, self._folder, self._run, self._launch = config, folder, run, launch
    self._identity = identity
    self._time = time.monotonic()
    options = config.checkpoint
    self._checkpoints = None
    if shared:
      mine = checkpoints_folder(folder)
      self._checkpoints = Checkpoints(mine, options.keep, options.keep_every)
      if options.every or options.minutes:
        self._checkpoints.prepare(abstract_state(launch.program))
      if start.own:
        self._checkpoints.saved = start.position
    self.position = start.position
    self.bad_steps: list[int] = [] if start.weights_only else list(start.about.get("bad_steps", ()))

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._checkpoints:
      self._checkpoints.close()

  @property
  def due(self) -> bool:
    """Whether this host's clock asks for a checkpoint; process 0's alone is asked."""
    minutes = self._config.checkpoint.minutes
    late = time.monotonic() - self._time >= 60 * minutes
    return bool(minutes) and late and jax.process_index() == 0

  @property
  def seconds(self) -> list[dict[str, Any]]:
    """What each save has kept the run waiting."""
    return self._checkpoints.seconds if self._checkpoints else []

  @property
  def last(self) -> str | None:
    """The name of the last checkpoint's folder."""
    saved = self._checkpoints and self._checkpoints.saved
    return saved.name if saved else None

  def trained(self, step: int, state: TrainState) -> None:
    """A training step is done; saves if it is time to."""
    self.position = Position(step)
    options = self._config.checkpoint
    if (
      (options.every and step % options.every == 0)
      or self._launch.save_asked
      or (options.at_end and step == self._config.train.steps)
    ):
      self.save(state)

  def launched(self, done: int) -> None:
    """So many of the launches that follow the step are done."""
    self.position = self.position._replace(done=done)

  def save(self, state: TrainState) -> None:
    """Saves the position, unless it is saved; the files are written in the background."""
    if self._checkpoints and self.position.step and self.position != self._checkpoints.saved:
      self._checkpoints.save(self.position, state, self._about())
      self._time = time.monotonic()

  def wait(self) -> None:
    """Until all that was saved is committed."""
    if self._checkpoints:
      self._checkpoints.wait()

  def _about(self) -> dict[str, Any]:
    config, step = self._config, self.position.step
    return {
      "launches": [entry for entry in self._launch.log if entry["mode"] != "stop"],
      "metrics_bytes": files.metrics_bytes(self._folder),
      "bad_steps": self.bad_steps,
      "data": {"steps": step, "pairs": step * config.train.batch_size},
      "seeds": {"seed": config.seed, "generate.seed": config.generate.seed},
      "identity": self._identity,
      "date": self._run.date,
      "skips": {name: report._asdict() for name, report in self._run.skips.items()},
      "program": self._launch.compiled.fingerprint,
      "build": build_fields(self._launch.compiled, self._launch.program.mesh),
      "mesh": dict(self._launch.program.mesh.shape),
      "versions": versions(),
      "config": json.loads(config.to_json()),
    }
