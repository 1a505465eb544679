"""How far a run has come, in one frozen value: what a checkpoint stores beside the arrays."""

from collections.abc import Mapping
from typing import NamedTuple

from simpo_jax.checkpoint.layout import Position
from simpo_jax.data.skip_report import SkipReport


class Progress(NamedTuple):
  """What is done of the schedule, and what was met on the way.

  Attributes:
    position: the training steps done, and the launches that followed the last one.
    skips: what became of the rows that were read, by dataset.
    bad_steps: training steps that were left out because they were not finite.
  """

  position: Position
  skips: Mapping[str, SkipReport]
  bad_steps: tuple[int, ...] = ()

  @property
  def step(self) -> int:
    """Training steps done."""
    return self.position.step

  def after_launch(self, done: int) -> "Progress":
    """The same step, after `done` of the launches that follow it."""
    return self._replace(position=Position(self.step, done))
