"""The input of a plan: a run's program and its workload."""

from typing import NamedTuple

from simpo_jax.data.types import PairTokens
from simpo_jax.generate.types import Assignment, Request
from simpo_jax.models.config import ModelConfig
from simpo_jax.program.config import ProgramConfig


class Planned(NamedTuple):
  """A run's program and its workload."""

  program: ProgramConfig
  model: ModelConfig
  pairs: list[PairTokens]  # of one training step
  requests: list[Request]
  assignments: list[Assignment]  # one per request
  pool_reason: str  # why the KV pool has this size
  attention_note: str | None  # why attention does not use the platform's kernel
  assumed: tuple[str, ...]  # the assumptions made; empty if this is exactly the run's program
