"""Types of training: its state, its configuration and its metrics."""

from typing import NamedTuple

import numpy as np
import optax
from jax.sharding import NamedSharding
from jaxtyping import Array, Bool, Float32, Int32

from simpo_jax.models import llama
from simpo_jax.models.config import ModelConfig
from simpo_jax.models.lora import Lora
from simpo_jax.settings import SimPOSettings
from simpo_jax.train.batch import AnyArray, BatchShape


class TrainState(NamedTuple):
  """The train state; donated to every launch and updated in place."""

  params: llama.Params  # the weights, and the LoRA adapters if there are any
  opt_state: optax.OptState  # for the parts that are not frozen
  step: Int32[Array, ""]  # optimizer steps done
  average: llama.Params | None = None  # EMA of the parts that are not frozen, if `ema_decay` > 0

  @property
  def weights(self) -> llama.Params:
    """The weights for evaluation and generation: averaged where there is an average."""
    return {**self.params, **(self.average or {})}


class StepConfig(NamedTuple):
  """The configuration of the training and evaluation branches."""

  model: ModelConfig
  simpo: SimPOSettings
  dtype: np.dtype  # of the operands of matmuls
  activations: np.dtype  # dtype of what lies between them; see `activation_dtype`
  remat: str  # what the backward pass recomputes; see `settings.train.REMAT`
  batch: BatchShape
  rows: NamedSharding  # of activations `[B, S, D]`
  weights: llama.Params  # NamedShardings of the weights and of their gradients
  attention: str = "xla"  # implementation of range attention
  frozen: tuple[str, ...] = ()  # top-level keys of the weights that are not updated
  lora: Lora | None = None  # the adapters; if set, all weights are frozen
  ema_decay: float = 0.0  # of the average of the weights; 0: no average
  logits_chunk: int = 256  # response tokens per row whose logits are computed at once
  windows: tuple[int, ...] | None = None  # per layer; None if no sequence exceeds a window


class PairStats(NamedTuple):
  """Statistics of each pair of a step; 0 for absent pairs."""

  chosen: Float32[AnyArray, " pairs"]  # average log-probability of the chosen response
  rejected: Float32[AnyArray, " pairs"]
  chosen_tokens: Int32[AnyArray, " pairs"]
  rejected_tokens: Int32[AnyArray, " pairs"]
  loss: Float32[AnyArray, " pairs"]  # SimPO term
  present: Bool[AnyArray, " pairs"]
  bad: Bool[AnyArray, " pairs"]  # its loss, or its micro-batch's gradient, is not finite


class Metrics(NamedTuple):
  """Metrics of a training step or an evaluation batch."""

  loss: Float32[AnyArray, ""]
  simpo_loss: Float32[AnyArray, ""]
  sft_loss: Float32[AnyArray, ""]
  grad_norm: Float32[AnyArray, ""]
  learning_rate: Float32[AnyArray, ""]
  ok: Bool[AnyArray, ""]  # loss and gradient are finite; if not, no update was applied
  pairs: PairStats
