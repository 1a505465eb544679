"""Compiles decode steps of a loaded model, which the host calls in a loop."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from simpo_jax.generate.kv_pool_size import free_bytes
from simpo_jax.generate.on_mesh import (
  cache_dtype,
  decode_specs,
  kv_axes,
  make_engine,
  pool_spec,
  weight_bytes,
)
from simpo_jax.generate.state import State, initial
from simpo_jax.generate.types import GenerateShape
from simpo_jax.loaded_model.model import MODE, LoadedModel
from simpo_jax.models import llama
from simpo_jax.models.sharding import device_put, named
from simpo_jax.models.weights import load_decode_params
from simpo_jax.program.build import compiler_options


class Program(NamedTuple):
  """A compiled program, `call(params, pool, rest, *inputs) -> (pool, rest)`.

  `pool`, which is donated, is the KV pool of a `State`; `rest` is the `State` without it.
  """

  call: Callable[..., Any]
  shardings: Any  # of (params, pool, rest)
  abstract: Any  # of (pool, rest)
  seconds: float  # to lower and compile


def room_for_pool(loaded: LoadedModel) -> int | None:
  """Bytes per device that the weights leave for the KV pool; None if unknown."""
  weights = weight_bytes(loaded.model.config, loaded.mesh, MODE, loaded.dtype)
  return free_bytes(loaded.mesh.devices.flat[0], weights)


def compile_steps(
  loaded: LoadedModel, shape: GenerateShape, step: Callable[..., State], inputs: tuple
) -> Program:
  """Compiles `step(engine, inputs[0], state, *inputs[1:])`.

  Args:
    step: such as `engine.generate_some`.
    inputs: numpy arrays with the shapes and dtypes of the inputs; replicated on all devices.
  """
  cfg, mesh = loaded.model.config, loaded.mesh
  replicated, cache = NamedSharding(mesh, P()), cache_dtype(mesh, loaded.dtype)
  start = time.perf_counter()

  def run(
    params: llama.Params, pool: jax.Array, rest: State, *inputs: Any
  ) -> tuple[jax.Array, State]:
    engine = make_engine(params, cfg, mesh, MODE, shape, cache)
    out = step(engine, inputs[0], rest._replace(pool=pool), *inputs[1:])
    return out.pool, out._replace(pool=None)

  engine = make_engine({}, cfg, mesh, MODE, shape, cache)
  state = jax.eval_shape(lambda: initial(engine))
  pool, rest = state.pool, state._replace(pool=None)
  weights = named(mesh, decode_specs(cfg, mesh, MODE))
  replicate_all = lambda tree: jax.tree.map(lambda _: replicated, tree)  # noqa: E731
  shardings = weights, NamedSharding(mesh, pool_spec(kv_axes(cfg, mesh, MODE))), replicate_all(rest)
  args = (_abstract_decode_params(loaded), pool, rest, *inputs)
  call = jax.jit(
    run,
    donate_argnums=1,
    in_shardings=(*shardings, *map(replicate_all, inputs)),
    out_shardings=shardings[1:],
  )
  compiled = call.lower(*args).compile(compiler_options(mesh))
  return Program(compiled, shardings, (pool, rest), time.perf_counter() - start)


def _abstract_decode_params(loaded: LoadedModel):
  cfg = loaded.model.config
  stacked = llama.abstract_params(cfg, loaded.dtype)
  return jax.eval_shape(lambda p: llama.unstack(p, cfg, loaded.dtype), stacked)


def load(loaded: LoadedModel, program: Program):
  """Puts the weights, and an initial state of zeros, on the devices; nothing compiles.

  Returns:
    params, pool and rest, as `Program.call` takes them.
  """
  weights, pool, rest = program.shardings
  params = load_decode_params(loaded.model, weights, loaded.dtype, loaded.config.seed)

  def zeros(x: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.Array:
    shape = sharding.shard_shape(x.shape)
    return jax.make_array_from_callback(x.shape, sharding, lambda _: np.zeros(shape, x.dtype))

  return params, *jax.tree.map(zeros, program.abstract, (pool, rest))


def put(loaded: LoadedModel, values: Any) -> Any:
  """Replicates numpy arrays on all devices; JAX arrays are returned as they are."""
  replicated = NamedSharding(loaded.mesh, P())
  return jax.tree.map(
    lambda x: x if isinstance(x, jax.Array) else device_put(np.asarray(x), replicated), values
  )
