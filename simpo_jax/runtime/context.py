"""What the run loop passes to every launch."""

from collections.abc import Callable
from typing import NamedTuple

import jax

from simpo_jax import storage
from simpo_jax.checkpoint.saver import Saver
from simpo_jax.data.prefetch import StepBatch
from simpo_jax.runtime.console import Display
from simpo_jax.runtime.launcher import Launcher
from simpo_jax.runtime.resolve import ResolvedRun
from simpo_jax.runtime.signals import StopSignal
from simpo_jax.settings import Settings
from simpo_jax.trackers.tracker import Tracking


class RunContext(NamedTuple):
  """What every launch of a run needs; constant throughout the run."""

  run: ResolvedRun
  config: Settings
  launch: Launcher
  folder: storage.Path
  display: Display
  stop: StopSignal
  batch_of: Callable[[int], StepBatch]  # by training step, from 1
  local_rows: range  # rows of each micro-batch that are on this process's devices
  saver: Saver
  track: Tracking

  @property
  def writes(self) -> bool:
    """Whether this process writes the shared files."""
    return jax.process_index() == 0
