"""Fully sharded data parallelism by hand (ZeRO stage 3, arXiv:1910.02054; FSDP, arXiv:2304.11277).

Inside a `jax.shard_map` over the axes of the batch each device holds its shard of every
weight. What it needs whole it gathers here, layer by layer, in the compute dtype; the
backward pass of a gather sums the gradient onto the shards (reduce-scatter). Left to
itself, the partitioner multiplies by one shard after another, or sums whole gradients
on every device.

An axis of a weight that is cut over several mesh axes is gathered one mesh axis at a
time, the innermost first: gradients then cross hosts last, when they are smallest.
"""

import jax
from jax.sharding import PartitionSpec

from simpo_jax.sharding import ROWS


def own_spec(spec: PartitionSpec) -> PartitionSpec:
  """How a weight is cut over the axes of the batch, whatever cuts it besides."""
  return PartitionSpec(*(_among(axes, batch=True) for axes in spec))


def gather(shard: jax.Array, spec: PartitionSpec, dtype) -> jax.Array:
  """The weight in `dtype`, from each device's shard of it; tensor parallelism still cuts it."""

  def whole(weight):
    for dim, axes in enumerate(spec):
      for axis in reversed(_among(axes, batch=True) or ()):
        weight = jax.lax.all_gather(weight, axis, axis=dim, tiled=True)
    return weight

  kept = [_among(axes, batch=False) for axes in spec]
  if any(kept):
    # Left to the partitioner, tensor parallelism would be gathered first.
    names = {axis for axes in kept for axis in axes or ()}
    cut = PartitionSpec(*kept)
    whole = jax.shard_map(whole, in_specs=cut, out_specs=cut, axis_names=names, check_vma=False)
  return whole(shard.astype(dtype))


def lookup(shard: jax.Array, spec: PartitionSpec, tokens: jax.Array, dtype) -> jax.Array:
  """Embeddings in `dtype`, int32 `[B, T]` to `[B, T, D]`, of a table `[V, D]` cut along D.

  Every device looks up its channels of everybody's tokens, which are then exchanged: far
  less than the table.
  """
  axes = _among(spec[1], batch=True)
  if not axes:
    return shard[tokens].astype(dtype)
  everybody = jax.lax.all_gather(tokens, axes, axis=0, tiled=True)
  return jax.lax.all_to_all(
    shard[everybody].astype(dtype), axes, split_axis=0, concat_axis=2, tiled=True
  )


def _among(axes: str | tuple[str, ...] | None, batch: bool) -> tuple[str, ...] | None:
  """Those of a PartitionSpec entry's mesh axes that cut the batch, or those that do not."""
  axes = (axes,) if isinstance(axes, str) else axes
  return tuple(a for a in axes or () if (a in ROWS[0]) == batch) or None
