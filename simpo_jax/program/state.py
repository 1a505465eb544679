"""The train state of the program: its shapes, how it is sharded, and its first value."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from simpo_jax.models import llama
from simpo_jax.models.lora import abstract_weights
from simpo_jax.program.config import ProgramConfig
from simpo_jax.train.step import TrainState, trainable


def state_sharding(cfg: ProgramConfig):
  """NamedShardings of the train state: optimizer moments lie as their weights do."""
  weights, replicated = cfg.step.weights, NamedSharding(cfg.mesh, P())
  shardings = trainable(weights, cfg.step.frozen)
  params = trainable(_abstract_params(cfg), cfg.step.frozen)
  # optax's own tree_map_params would run the optimizer's init on the device.
  like_params = lambda x: jax.tree.structure(x) == jax.tree.structure(params)  # noqa: E731
  optimizer = jax.tree.map(
    lambda x: shardings if like_params(x) else replicated,
    jax.eval_shape(cfg.tx.init, params),
    is_leaf=like_params,
  )
  return TrainState(weights, optimizer, replicated, shardings if cfg.step.ema_decay else None)


def abstract_state(cfg: ProgramConfig) -> TrainState:
  """Shapes, dtypes and shardings of the train state."""
  params = _abstract_params(cfg)
  learning = trainable(params, cfg.step.frozen)
  shapes = TrainState(
    params,
    jax.eval_shape(cfg.tx.init, learning),
    jax.ShapeDtypeStruct((), jnp.int32),
    learning if cfg.step.ema_decay else None,
  )
  return jax.tree.map(with_sharding, shapes, state_sharding(cfg))


def init_state(cfg: ProgramConfig, params: llama.Params) -> TrainState:
  """The state of step 0 around placed weights; nothing compiles.

  AdamW's state starts as zeros throughout, so numpy can make it.
  """
  abstract = abstract_state(cfg)

  def zeros(x):
    return jax.make_array_from_callback(
      x.shape, x.sharding, lambda _: np.zeros(x.sharding.shard_shape(x.shape), x.dtype)
    )

  def copy(x):
    parts = {str(shard.index): shard.data for shard in x.addressable_shards}
    return jax.make_array_from_callback(
      x.shape, x.sharding, lambda index: np.array(parts[str(index)])
    )

  return TrainState(
    params,
    jax.tree.map(zeros, abstract.opt_state),
    zeros(abstract.step),
    jax.tree.map(copy, trainable(params, cfg.step.frozen)) if cfg.step.ema_decay else None,
  )


def state_bytes(cfg: ProgramConfig) -> int:
  """Bytes of the train state on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(abstract_state(cfg))
  )


def _abstract_params(cfg: ProgramConfig) -> llama.Params:
  return abstract_weights(cfg.step.model, cfg.param_dtype, cfg.step.lora)


def with_sharding(x, sharding):
  """The shape and dtype of `x`, so sharded."""
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
