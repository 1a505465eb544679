"""The optimizer and its learning-rate schedule, built with optax."""

import math

import jax
import optax

from simpo_jax.models.config import ModelConfig
from simpo_jax.models.llama import Tensor
from simpo_jax.models.lora import Lora, all_tensors
from simpo_jax.settings import TrainSettings
from simpo_jax.train.step import trainable


def make_schedule(train: TrainSettings) -> optax.Schedule:
  """Returns the learning rate by step (counted from 0), as in Hugging Face's Trainer.

  Linear warm-up from 0 over ceil(warmup_ratio * steps) steps, then a cosine or
  linear decay to 0 at `steps`, or constant.
  """
  warmup = math.ceil(train.warmup_ratio * train.steps)
  rest = max(train.steps - warmup, 1)
  decay = {
    "cosine": lambda: optax.cosine_decay_schedule(train.learning_rate, rest),
    "linear": lambda: optax.linear_schedule(train.learning_rate, 0.0, rest),
    "constant": lambda: optax.constant_schedule(train.learning_rate),
  }
  if not warmup:
    return decay[train.schedule]()
  ramp = optax.linear_schedule(0.0, train.learning_rate, warmup)
  return optax.join_schedules([ramp, decay[train.schedule]()], [warmup])


def make_optimizer(
  train: TrainSettings,
  schedule: optax.Schedule,
  model: ModelConfig,
  frozen: tuple[str, ...] = (),
  lora: Lora | None = None,
) -> optax.GradientTransformation:
  """Returns AdamW (arXiv:1711.05101) after clipping by global gradient norm.

  Norms and biases are excluded from weight decay, as in Hugging Face's Trainer. The gradients
  and updates are trees of the weights and adapters without the `frozen` parts.
  """

  def is_decayed(tensor: Tensor) -> bool:
    return tensor.is_matrix

  decayed = jax.tree.map(is_decayed, all_tensors(model, lora))
  adamw = optax.adamw(
    schedule,
    b1=train.b1,
    b2=train.b2,
    eps=train.eps,
    mu_dtype=train.mu_dtype,
    weight_decay=train.weight_decay,
    mask=trainable(decayed, frozen),
  )
  if train.max_grad_norm <= 0:
    return adamw
  return optax.chain(optax.clip_by_global_norm(train.max_grad_norm), adamw)
