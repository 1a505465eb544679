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
from jax.sharding import NamedSharding, PartitionSpec

from simpo_jax.sharding import ROWS


def own_spec(sharding: NamedSharding, stacked: bool = False) -> PartitionSpec:
  """How a weight is cut over the axes of the batch; tensor parallelism is not ours to handle.

  Args:
    stacked: leave out the first axis, that of layers.
  """
  cut = (tuple(a for a in axes or () if a in ROWS[0]) or None for axes in sharding.spec)
  return PartitionSpec(*tuple(cut)[stacked:])


def gather(shard: jax.Array, spec: PartitionSpec, dtype) -> jax.Array:
  """The whole weight in `dtype`, from each device's shard of it."""
  weight = shard.astype(dtype)
  for dim, axes in enumerate(spec):
    for axis in reversed(axes or ()):
      weight = jax.lax.all_gather(weight, axis, axis=dim, tiled=True)
  return weight


def lookup(shard: jax.Array, spec: PartitionSpec, tokens: jax.Array, dtype) -> jax.Array:
  """Embeddings in `dtype`, int32 `[B, T]` to `[B, T, D]`, of a table `[V, D]` cut along D.

  Every device looks up its channels of everybody's tokens, which are then exchanged: far
  less than the table.
  """
  _, axes = spec
  if not axes:
    return shard[tokens].astype(dtype)
  everybody = jax.lax.all_gather(tokens, axes, axis=0, tiled=True)
  return jax.lax.all_to_all(
    shard[everybody].astype(dtype), axes, split_axis=0, concat_axis=2, tiled=True
  )
