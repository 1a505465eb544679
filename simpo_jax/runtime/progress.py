"""The progress of a run as one immutable value, which checkpoints store next to the arrays."""

from collections.abc import Mapping
from typing import NamedTuple

from simpo_jax.checkpoint.layout import Position
from simpo_jax.data.skip_report import SkipReport


class Progress(NamedTuple):
  """How much of the schedule is done, and what was skipped.

  Attributes:
    position: training steps done, and launches done after the last of them.
    skips: counts of the rows read, used and skipped, by dataset.
    bad_steps: training steps with a non-finite loss or gradient, whose updates were not applied.
  """

  position: Position
  skips: Mapping[str, SkipReport]
  bad_steps: tuple[int, ...] = ()

  @property
  def step(self) -> int:
    """Training steps done."""
    return self.position.step

  def after_launch(self, done: int) -> "Progress":
    """The progress once `done` of the launches that follow this step are done."""
    return self._replace(position=Position(self.step, done))
