"""The train state of the program: its shapes, shardings and initial value."""

import math
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from simpo_jax.models import llama
from simpo_jax.models.lora import abstract_weights
from simpo_jax.program.config import ProgramConfig
from simpo_jax.train.step import trainable
from simpo_jax.train.types import TrainState


def state_sharding(cfg: ProgramConfig) -> TrainState:
  """Returns NamedShardings of the train state; optimizer moments are sharded like weights."""
  weights, replicated = cfg.step.weights, NamedSharding(cfg.mesh, P())
  shardings = trainable(weights, cfg.step.frozen)
  params = trainable(_abstract_params(cfg), cfg.step.frozen)

  def like_params(x: Any) -> bool:
    return cast(bool, jax.tree.structure(x) == jax.tree.structure(params))

  def sharding(x: Any) -> Any:
    return shardings if like_params(x) else replicated

  # optax.tree_map_params would run the optimizer's init on the device.
  moments = jax.eval_shape(cfg.tx.init, params)
  optimizer = jax.tree.map(sharding, moments, is_leaf=like_params)
  average = shardings if cfg.step.ema_decay else None
  return TrainState._make((weights, optimizer, replicated, average))


def abstract_state(cfg: ProgramConfig) -> TrainState:
  """Returns shapes, dtypes and shardings of the train state."""
  params = _abstract_params(cfg)
  learning = trainable(params, cfg.step.frozen)
  optimizer = jax.eval_shape(cfg.tx.init, learning)
  average = learning if cfg.step.ema_decay else None
  step = jax.ShapeDtypeStruct((), jnp.int32)
  shapes = TrainState._make((params, optimizer, step, average))
  return jax.tree.map(with_sharding, shapes, state_sharding(cfg))


def init_state(cfg: ProgramConfig, params: llama.Params) -> TrainState:
  """Returns the train state of step 0 for device weights, without compiling anything.

  The initial state of AdamW is all zeros, so numpy can create it.
  """
  abstract = abstract_state(cfg)

  def zeros(x: jax.ShapeDtypeStruct) -> jax.Array:
    def part(_: object) -> np.ndarray:
      return np.zeros(x.sharding.shard_shape(x.shape), x.dtype)

    return jax.make_array_from_callback(x.shape, x.sharding, part)

  def copy(x: jax.Array) -> jax.Array:
    parts = {str(shard.index): shard.data for shard in x.addressable_shards}

    def part(index: object) -> np.ndarray:
      return np.array(parts[str(index)])

    return jax.make_array_from_callback(x.shape, x.sharding, part)

  opt_state, step = jax.tree.map(zeros, (abstract.opt_state, abstract.step))
  average = jax.tree.map(copy, trainable(params, cfg.step.frozen)) if cfg.step.ema_decay else None
  return TrainState(params, opt_state, step, average)


def state_bytes(cfg: ProgramConfig) -> int:
  """Returns the bytes of the train state on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(abstract_state(cfg))
  )


def _abstract_params(cfg: ProgramConfig) -> llama.Params:
  return abstract_weights(cfg.step.model, cfg.param_dtype, cfg.step.lora)


def with_sharding(
  x: jax.ShapeDtypeStruct | np.ndarray, sharding: NamedSharding
) -> jax.ShapeDtypeStruct:
  """Returns the shape and dtype of `x` with a sharding."""
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
