"""The optimizer and its learning-rate schedule, from optax."""

import math

import ml_collections
import optax

from simpo_jax.errors import UserError

SCHEDULES = ("cosine", "linear", "constant")
OPTIMIZERS = ("adamw",)


def make_schedule(cfg: ml_collections.ConfigDict) -> optax.Schedule:
  """Learning rate of a step, counted from 0, as Hugging Face's trainers define it.

  Linear warm-up from 0 over ceil(warmup_ratio * steps) steps, then a cosine or
  linear decay to 0 at `steps`, or constant.
  """
  warmup = math.ceil(cfg.warmup_ratio * cfg.steps)
  rest = max(cfg.steps - warmup, 1)
  decay = {
    "cosine": lambda: optax.cosine_decay_schedule(cfg.learning_rate, rest),
    "linear": lambda: optax.linear_schedule(cfg.learning_rate, 0.0, rest),
    "constant": lambda: optax.constant_schedule(cfg.learning_rate),
  }
  if cfg.schedule not in decay:
    raise UserError(
      f"--config.train.schedule={cfg.schedule!r} is not one of {', '.join(SCHEDULES)}"
    )
  if not warmup:
    return decay[cfg.schedule]()
  ramp = optax.linear_schedule(0.0, cfg.learning_rate, warmup)
  return optax.join_schedules([ramp, decay[cfg.schedule]()], [warmup])


def make_optimizer(
  cfg: ml_collections.ConfigDict, schedule: optax.Schedule
) -> optax.GradientTransformation:
  """AdamW (arXiv:1711.05101) behind a clip of the global gradient norm."""
  if cfg.optimizer not in OPTIMIZERS:
    raise UserError(
      f"--config.train.optimizer={cfg.optimizer!r} is not one of {', '.join(OPTIMIZERS)}"
    )
  adamw = optax.adamw(schedule, b1=cfg.b1, b2=cfg.b2, eps=cfg.eps, weight_decay=cfg.weight_decay)
  if cfg.max_grad_norm <= 0:
    return adamw
  return optax.chain(optax.clip_by_global_norm(cfg.max_grad_norm), adamw)
