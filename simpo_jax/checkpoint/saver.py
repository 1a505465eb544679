"""Decides when a run saves, and which metadata its checkpoints have."""

import contextlib
import time
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from simpo_jax import storage
from simpo_jax.checkpoint.layout import Position
from simpo_jax.checkpoint.manager import Checkpoints
from simpo_jax.checkpoint.resume import ResumePoint, checkpoints_folder
from simpo_jax.config import as_json
from simpo_jax.errors import UserError, one_line
from simpo_jax.program.state import abstract_state
from simpo_jax.runtime.fingerprint import build_fields, versions
from simpo_jax.runtime.launcher import Launcher
from simpo_jax.runtime.progress import Progress
from simpo_jax.runtime.resolve import ResolvedRun
from simpo_jax.settings import Settings
from simpo_jax.train.step import TrainState
from simpo_jax.workdir import files

_TRIAL = "trial"  # in the folder of the checkpoints; does not match their names


def try_saving(workdir: storage.Path, mesh: Mesh) -> None:
  """Writes and deletes a trial checkpoint of one int32 per device, saved like the train state.

  So a workdir that cannot be written fails before the first step. All processes must call this,
  and each writes its shards; nothing compiles.

  Raises:
    UserError: the checkpoint cannot be written.
  """
  folder, is_primary = checkpoints_folder(workdir), jax.process_index() == 0
  trial = folder / _TRIAL
  sharding = NamedSharding(mesh, P(mesh.axis_names))
  one_each = jax.make_array_from_callback(
    (mesh.size,), sharding, lambda index: np.zeros(mesh.size, np.int32)[index]
  )
  try:
    if is_primary:
      storage.remove_tree(trial)  # left by a run that was killed
      if not storage.is_remote(folder):
        folder.mkdir(exist_ok=True)
    try:
      with contextlib.closing(Checkpoints(trial, 1, 0, low_priority=False)) as checkpoints:
        checkpoints.save(Position(), TrainState({"trial": one_each}, {}, one_each), {})
        checkpoints.wait()
    finally:
      if is_primary:
        storage.remove_tree(trial)
        if not storage.is_remote(folder) and not storage.names(folder):
          folder.rmdir()
  except (UserError, *storage.failures()) as e:
    cause = e.__cause__ or e
    raise UserError(
      f"--workdir={workdir}: nothing can be saved there "
      f"({getattr(cause, 'strerror', None) or one_line(cause)}); free space, fix the storage, or "
      "choose another folder"
    ) from e


class Saver:
  """Saves a run as often as its config says.

  Args:
    folder: the workdir.
    run: for the date in the metadata.
    launch: for the program's shapes and the log of launches.
    identity: see `fingerprint.identity_fields`.
    shared: whether all hosts see the workdir; if not, nothing is saved.
  """

  def __init__(
    self,
    config: Settings,
    folder: storage.Path,
    run: ResolvedRun,
    launch: Launcher,
    start: ResumePoint,
    identity: dict[str, str],
    shared: bool,
  ):
    self._config, self._folder, self._run, self._launch = config, folder, run, launch
    self._identity = identity
    self._saved_at = time.monotonic()
    options = config.checkpoint
    self._checkpoints = None
    if shared:
      checkpoints = checkpoints_folder(folder)
      self._checkpoints = Checkpoints(checkpoints, options.keep, options.keep_every)
      if options.every or options.minutes:
        self._checkpoints.prepare(abstract_state(launch.program))
      if start.is_resume:
        self._checkpoints.saved = start.position

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._checkpoints:
      self._checkpoints.close()

  @property
  def due(self) -> bool:
    """Whether `checkpoint.minutes` have passed since the last save; False but on process 0."""
    minutes = self._config.checkpoint.minutes
    passed = time.monotonic() - self._saved_at >= 60 * minutes
    return bool(minutes) and passed and jax.process_index() == 0

  @property
  def seconds(self) -> list[dict[str, Any]]:
    """For each save: its step, start time, and the seconds for which it blocked the run."""
    return self._checkpoints.seconds if self._checkpoints else []

  @property
  def last(self) -> str | None:
    """Name of the last checkpoint's folder; None if there is none."""
    saved = self._checkpoints and self._checkpoints.saved
    return saved.name if saved else None

  def after_step(self, progress: Progress, state: TrainState) -> None:
    """Saves if a checkpoint is due; called after a training step, before the launches after it."""
    step, options = progress.step, self._config.checkpoint
    if (
      (options.every and step % options.every == 0)
      or self._launch.save_requested
      or (options.at_end and step == self._config.train.steps)
    ):
      self.save(progress, state)

  def save(self, progress: Progress, state: TrainState) -> None:
    """Saves in the background, unless this position is already saved."""
    position = progress.position
    if self._checkpoints and progress.step and position != self._checkpoints.saved:
      self._checkpoints.save(position, state, self._metadata(progress))
      self._saved_at = time.monotonic()

  def wait(self) -> None:
    """Blocks until the last save is committed."""
    if self._checkpoints:
      self._checkpoints.wait()

  def _metadata(self, progress: Progress) -> dict[str, Any]:
    config, step = self._config, progress.step
    return {
      "launches": [entry for entry in self._launch.log if entry["mode"] != "stop"],
      "metrics_bytes": files.metrics_bytes(self._folder),
      "bad_steps": list(progress.bad_steps),
      "data": {"steps": step, "pairs": step * config.train.batch_size},
      "seeds": {"seed": config.seed, "generate.seed": config.generate.seed},
      "identity": self._identity,
      "date": self._run.date,
      "split_by": self._run.split_by,
      "skips": {name: report._asdict() for name, report in progress.skips.items()},
      "program": self._launch.compiled.fingerprint,
      "build": build_fields(self._launch.compiled, self._launch.program.mesh),
      "mesh": dict(self._launch.program.mesh.shape),
      "versions": versions(),
      "config": as_json(config),
    }
