"""Everything that the compiled program depends on."""

import dataclasses

import numpy as np
import optax
from jax.sharding import Mesh

from simpo_jax.generate.types import GenerateShape
from simpo_jax.train.batch import BatchShape
from simpo_jax.train.types import StepConfig


@dataclasses.dataclass(frozen=True)
class ProgramConfig:
  """Everything that the compiled program depends on."""

  step: StepConfig
  generate: GenerateShape
  mode: str  # host_data_parallel | global_mesh
  param_dtype: np.dtype
  tx: optax.GradientTransformation
  schedule: optax.Schedule
  mesh: Mesh

  @property
  def batch(self) -> BatchShape:
    """The batch shape of training steps and of evaluation batches."""
    return self.step.batch
