"""Generation on a mesh: the sharding of weights and KV cache.

In `host_data_parallel` mode every host answers its local requests with a full set of weights,
tensor-parallel over the host's devices: the host axis is manual, and only the loop counters
are communicated across it. In `global_mesh` mode all devices answer one queue of requests.
"""

import functools
import math
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Int32

from simpo_jax.generate.engine import generate_group
from simpo_jax.generate.sampling.settings import Across
from simpo_jax.generate.state import Engine, PagedAttend
from simpo_jax.generate.types import Generated, GenerateShape, Requests
from simpo_jax.kernels.paged_attention import paged_prefill, write
from simpo_jax.kernels.paged_attention.layouts import KVPool
from simpo_jax.models import llama
from simpo_jax.models.config import ModelConfig
from simpo_jax.models.linear import activation_dtype
from simpo_jax.models.lora import beside_weights
from simpo_jax.models.sharding import INFERENCE_RULES, named, param_specs


def decode_specs(model: ModelConfig, mesh: Mesh, mode: str) -> llama.Params:
  """Returns PartitionSpecs of the decode weights, layers unstacked."""
  specs = param_specs(model, mesh, INFERENCE_RULES[mode])

  def unstacked(spec: P) -> P:
    return P(*spec[1:])

  layer = jax.tree.map(unstacked, specs["layers"])
  return {**specs, "layers": [layer] * model.num_hidden_layers}


def kv_axes(model: ModelConfig, mesh: Mesh | AbstractMesh, mode: str) -> tuple[str, ...]:
  """Returns the mesh axes that shard the heads of the KV cache."""
  return _axes(param_specs(model, mesh, INFERENCE_RULES[mode])["layers"]["k"][-1])


def _vocab_shards(model: ModelConfig, mesh: Mesh | AbstractMesh, mode: str) -> int:
  axes = _axes(param_specs(model, mesh, INFERENCE_RULES[mode])["embed"][0])
  return math.prod(mesh.shape[axis] for axis in axes)


def _axes(entry: str | tuple[str, ...] | None) -> tuple[str, ...]:
  """Returns the mesh axes that an entry of a PartitionSpec names."""
  return (entry,) if isinstance(entry, str) else entry or ()


def head_shards(model: ModelConfig, mesh: Mesh, mode: str) -> int:
  """Returns the number of shards of the KV heads."""
  return math.prod(mesh.shape[axis] for axis in kv_axes(model, mesh, mode))


def cache_dtype(mesh: Mesh, dtype: DTypeLike) -> np.dtype:
  """Returns the dtype of activations and the KV pool where matmuls have operands in `dtype`."""
  return activation_dtype(dtype, mesh.devices.flat[0].platform)


def page_bytes(model: ModelConfig, mesh: Mesh, mode: str, page_size: int, dtype: np.dtype) -> int:
  """Returns the bytes of one page on one device, in all layers; `dtype` is the compute dtype."""
  tokens = model.num_hidden_layers * page_size
  heads = model.num_key_value_heads // head_shards(model, mesh, mode)
  return tokens * 2 * heads * model.head_dim * cache_dtype(mesh, dtype).itemsize


def weight_bytes(model: ModelConfig, mesh: Mesh, mode: str, dtype: np.dtype) -> int:
  """Returns the bytes of the decode weights on one device."""
  shardings = named(mesh, param_specs(model, mesh, INFERENCE_RULES[mode]))

  def size(weight: jax.ShapeDtypeStruct, sharding: NamedSharding) -> int:
    return math.prod(sharding.shard_shape(weight.shape))

  sizes = jax.tree.map(size, llama.abstract_params(model, dtype), shardings)
  return sum(jax.tree.leaves(sizes)) * dtype.itemsize


def generate(
  params: llama.Params,
  requests: Requests,
  model: ModelConfig,
  mesh: Mesh,
  mode: str,
  shape: GenerateShape,
  dtype: DTypeLike,
  merge_lora: Callable[[llama.Params], llama.Params] = lambda p: p,
) -> Generated:
  """Casts and reshards the training weights for decoding, then answers all requests.

  Args:
    params: the training weights, layers stacked.
    requests: of all groups.
    mode: a key of `INFERENCE_RULES`.
    dtype: compute dtype.
    merge_lora: merges a layer's adapters, if there are any, into its weights.

  Returns:
    The answers of all groups, sharded over hosts if there are several groups.
  """
  specs = named(mesh, decode_specs(model, mesh, mode))
  params = llama.unstack(beside_weights(params), model, dtype, merge_lora)
  params = jax.lax.with_sharding_constraint(params, specs)

  def first(x: Array) -> Array:
    return x[0]

  def with_group(x: Array) -> Array:
    return x[None]

  def group(params: llama.Params, requests: Requests, axis: str | None = None) -> Generated:
    # Inside shard_map, the abstract mesh of the context records which axes are manual.
    context = jax.sharding.get_abstract_mesh() if axis else mesh
    engine = make_engine(params, model, context, mode, shape, cache_dtype(mesh, dtype), axis)
    local = requests._replace(each=jax.tree.map(first, requests.each))
    return jax.tree.map(with_group, generate_group(engine, local))

  if shape.groups == 1:
    return group(params, requests)
  specs = requests._replace(each=P("host"), stops=P(), seed=P(), suppression=P())
  return jax.shard_map(
    functools.partial(group, axis="host"),
    mesh=mesh,
    in_specs=(P(), specs),
    out_specs=P("host"),
    axis_names={"host"},
    check_vma=False,
  )(params, requests)


def make_engine(
  params: llama.Params,
  model: ModelConfig,
  mesh: Mesh | AbstractMesh,
  mode: str,
  shape: GenerateShape,
  dtype: DTypeLike,
  axis: str | None = None,
) -> Engine:
  """Returns an engine whose arrays are sharded over a mesh.

  Args:
    params: the decode weights, sharded as in `decode_specs`.
    mesh: inside `jax.shard_map`, the abstract mesh of the context.
    mode: a key of `INFERENCE_RULES`.
    dtype: of activations and the KV pool, from `cache_dtype`.
    axis: the manual mesh axis over groups, if there are several groups.
  """
  heads = kv_axes(model, mesh, mode)
  pool, whole = NamedSharding(mesh, pool_spec(heads)), NamedSharding(mesh, P())

  def place_pool(x: KVPool) -> KVPool:
    return jax.lax.with_sharding_constraint(x, pool)

  def replicate(x: Array) -> Array:
    return jax.lax.with_sharding_constraint(x, whole)

  def max_over_groups(x: Array) -> Array:
    return jax.lax.pmax(x, axis) if axis else x

  return Engine(
    params,
    model,
    shape,
    dtype,
    attend=_paged_attend(model, shape, mesh, heads, axis),
    place_pool=place_pool,
    across=Across(_vocab_shards(model, mesh, mode), replicate, max_over_groups),
  )


def pool_spec(heads: tuple[str, ...]) -> P:
  """Returns the PartitionSpec of the KV pool."""
  return P(None, None, heads or None)


def paged_attend(model: ModelConfig, shape: GenerateShape) -> PagedAttend:
  """Returns attention over the KV pages of one device, with the kernel `shape.attention`."""

  def attend(
    q: llama.Query,
    k: llama.KeyValue,
    v: llama.KeyValue,
    pool: KVPool,
    page_ids: Int32[Array, "B pages_per_seq"],
    start: Int32[Array, " B"],
    count: Int32[Array, " B"],
    *,
    window: int | None,
  ) -> tuple[llama.Query, KVPool]:
    pool = write(pool, page_ids, start, count, k, v, impl=shape.attention)
    out = paged_prefill(
      q,
      pool,
      page_ids,
      start,
      count,
      window=window,
      soft_cap=model.attn_logit_softcapping,
      impl=shape.attention,
    )
    return out, pool

  return attend


def _paged_attend(
  model: ModelConfig,
  shape: GenerateShape,
  mesh: Mesh | AbstractMesh,
  heads: tuple[str, ...],
  manual: str | None,
) -> PagedAttend:
  """`paged_attend` on a mesh: each device reads and writes only its local heads."""
  attend = paged_attend(model, shape)
  axes = set(mesh.axis_names) - {manual}
  if math.prod(mesh.shape[axis] for axis in axes) == 1:
    return attend
  by_head, pool = P(None, None, heads or None), pool_spec(heads)

  def on_mesh(*args: Array, window: int | None) -> tuple[Array, KVPool]:
    return jax.shard_map(
      functools.partial(attend, window=window),
      mesh=mesh,
      in_specs=(by_head, by_head, by_head, pool, P(), P(), P()),
      out_specs=(by_head, pool),
      axis_names=axes,
      check_vma=False,
    )(*args)

  return on_mesh
