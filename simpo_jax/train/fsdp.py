"""Fully sharded data parallelism by hand (ZeRO stage 3, arXiv:1910.02054; FSDP, arXiv:2304.11277).

Inside a `jax.shard_map` each device holds its shard of every weight. The full weights are
gathered here, layer by layer, in the compute dtype; the backward pass of a gather is a
reduce-scatter of the gradient. XLA's SPMD partitioner would instead multiply by one shard
after another, or all-reduce full gradients.

A weight axis sharded over several mesh axes is gathered one mesh axis at a time, the last in
its PartitionSpec entry first: the backward pass then reduce-scatters across hosts last, when
gradients are smallest. Axes sharded by tensor parallelism (arXiv:1909.08053) stay sharded.
"""

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32

from simpo_jax.kernels.range_attention import RESIDUALS
from simpo_jax.models.sharding import ROWS

TENSOR = "tensor"  # the mesh axis of tensor parallelism
MeshAxes = str | tuple[str, ...] | None  # an entry of a PartitionSpec
_Layer = TypeVar("_Layer", bound=Callable[..., Any])


def _all_but_gathered(primitive: Primitive, *_: Any, **__: Any) -> bool:
  return primitive.name != "all_gather"


# Checkpoint policies by name: what of a layer's forward pass is saved for the backward pass.
# Gathered weights never are; they are gathered again.
_SAVE = jax.checkpoint_policies
_KEPT: dict[str, Callable[..., Any]] = {
  "full": _SAVE.nothing_saveable,
  "dots": _SAVE.save_from_both_policies(
    _SAVE.dots_with_no_batch_dims_saveable, _SAVE.save_only_these_names(RESIDUALS)
  ),
  "none": _all_but_gathered,
}


def remat(policy: str, single_device: bool = False) -> Callable[[_Layer], _Layer]:
  """Returns a decorator for a layer that rematerializes what the policy does not save.

  `full` recomputes the layer from its input. `dots` recomputes everything except matmuls and
  attention (norms, rotary embeddings and activations). `none` recomputes only the gathered
  weights, or nothing if `single_device`, where nothing is gathered.
  """
  if policy == "none" and single_device:
    return lambda f: f
  # prevent_cse is not needed inside a scan, where CSE with the forward pass cannot happen.
  return cast(
    Callable[[_Layer], _Layer],
    functools.partial(jax.checkpoint, policy=_KEPT[policy], prevent_cse=False),
  )


def gather(
  shard: Float[Array, "..."], spec: PartitionSpec, dtype: DTypeLike
) -> Float[Array, "..."]:
  """Gathers a weight in `dtype` from its FSDP shards; tensor-parallel axes stay sharded."""
  weight = shard.astype(dtype)
  for dim, axes in enumerate(spec):
    for axis in reversed(_batch_axes(axes)):
      weight = _all_gather(weight, axis, dim)
  return weight


def lookup(
  shard: Float[Array, "rows channels"],
  spec: PartitionSpec,
  tokens: Int32[Array, "B T"],
  dtype: DTypeLike,
) -> Float[Array, "B T D"]:
  """Looks up embeddings in `dtype` in a table `[V, D]` that is sharded over either axis.

  Each device looks up its shard of the channels for the tokens of all devices; an all-to-all
  then returns all channels of its local tokens, which moves far less data than gathering the
  table.
  """
  axes = _batch_axes(spec[1])
  if axes:
    tokens = _all_gather(tokens, axes, 0)
  if is_tensor_sharded(spec[0]):
    local = own_ids(tokens, shard.shape[0], TENSOR)
    x = jnp.where(local[..., None] >= 0, shard[jnp.maximum(local, 0)], 0).astype(dtype)
  else:
    x = shard[tokens].astype(dtype)
  if axes:
    x = jax.lax.all_to_all(x, axes, split_axis=0, concat_axis=2, tiled=True)
  return all_reduce(x, TENSOR) if is_tensor_sharded(spec[0]) else x


def own_ids(ids: Int32[Array, "*shape"], size: int, axis: str | None) -> Int32[Array, "*shape"]:
  """Converts ids to indices into this device's `size` rows of a table sharded over `axis`.

  Ids in another device's rows become -1. With `axis` None the ids are returned unchanged.
  """
  if axis is None:
    return ids
  ids = ids - jax.lax.axis_index(axis) * size
  return jnp.where((ids >= 0) & (ids < size), ids, -1)


def all_reduce(x: Float[Array, "*shape"], axis: str) -> Float[Array, "*shape"]:
  """Sums `x` over the devices along a mesh axis."""
  return cast(Array, jax.lax.psum(x, axis))


def _all_gather(x: Array, axes: str | tuple[str, ...], dim: int) -> Array:
  return cast(Array, jax.lax.all_gather(x, axes, axis=dim, tiled=True))


def is_tensor_sharded(axes: MeshAxes) -> bool:
  """Whether a dimension with this PartitionSpec entry is sharded by tensor parallelism."""
  return TENSOR in _names(axes or ()) and jax.lax.axis_size(TENSOR) > 1


def _batch_axes(axes: MeshAxes) -> tuple[str, ...]:
  """The mesh axes of a PartitionSpec entry that also shard the batch."""
  return tuple(a for a in _names(axes or ()) if a in ROWS[0] and jax.lax.axis_size(a) > 1)


def _names(axes: str | tuple[str, ...]) -> tuple[str, ...]:
  return (axes,) if isinstance(axes, str) else axes
