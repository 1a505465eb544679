"""Types of training: its state, its choices, and what a step tells."""

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
  """What training changes; donated to every launch and updated in place."""

  params: llama.Params  # and adapters, if it is those that are trained
  opt_state: optax.OptState  # of what is not frozen
  step: Int32[Array, ""]  # optimizer steps done
  average: llama.Params | None = None  # over the steps, of what is not frozen, if asked for

  @property
  def weights(self) -> llama.Params:
    """What evaluation and generation use."""
    return {**self.params, **(self.average or {})}


class StepConfig(NamedTuple):
  """The choices that shape the training and evaluation branches."""

  model: ModelConfig
  simpo: SimPOSettings
  dtype: np.dtype  # compute dtype
  remat: str  # what the backward pass computes again; see `settings.train.REMAT`
  batch: BatchShape
  rows: NamedSharding  # of activations `[B, S, D]`
  weights: llama.Params  # NamedShardings of the weights, which gradients keep
  attention: str = "xla"  # implementation of range attention
  frozen: tuple[str, ...] = ()  # parts of the weights that training leaves as they are
  lora: Lora | None = None  # the adapters; all else is frozen then
  ema_decay: float = 0.0  # of the weights' average; 0: none
  logits_chunk: int = 256  # response tokens of a row whose logits exist at once
  windows: tuple[int, ...] | None = None  # of each layer, if some sequence is longer than one


class PairStats(NamedTuple):
  """Per pair of the step; entries of absent pairs are 0."""

  chosen: Float32[AnyArray, " pairs"]  # average log-probability of the chosen response
  rejected: Float32[AnyArray, " pairs"]
  chosen_tokens: Int32[AnyArray, " pairs"]
  rejected_tokens: Int32[AnyArray, " pairs"]
  loss: Float32[AnyArray, " pairs"]  # SimPO term
  present: Bool[AnyArray, " pairs"]
  bad: Bool[AnyArray, " pairs"]  # not finite itself, or in the micro-batch whose gradient is not


class Metrics(NamedTuple):
  """Of a step or an evaluation batch."""

  loss: Float32[AnyArray, ""]
  simpo_loss: Float32[AnyArray, ""]
  sft_loss: Float32[AnyArray, ""]
  grad_norm: Float32[AnyArray, ""]
  learning_rate: Float32[AnyArray, ""]
  ok: Bool[AnyArray, ""]  # loss and gradient are finite; if not, no update was applied
  pairs: PairStats
