"""What a plan is of: the program of a run, and the work that it would be given."""

from typing import NamedTuple

from simpo_jax.data.types import PairTokens
from simpo_jax.generate.types import Assignment, Request
from simpo_jax.models.config import ModelConfig
from simpo_jax.program.config import ProgramConfig


class Planned(NamedTuple):
  """What is to run."""

  program: ProgramConfig
  model: ModelConfig
  pairs: list[PairTokens]  # of one step
  requests: list[Request]
  assignments: list[Assignment]  # of the requests
  pool_reason: str
  attention_note: str | None
  assumed: tuple[str, ...]  # what was not at hand; empty: this is the run's own program
