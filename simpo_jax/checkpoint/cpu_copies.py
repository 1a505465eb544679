"""Copies of a state's arrays on CPU, where Orbax would otherwise read the donated arrays."""

import math
import mmap
from typing import Any

import jax
import numpy as np


def allocate_buffers(tree: dict[str, Any]) -> dict[str, Any]:
  """Allocates the memory into which `copy_on_cpu` copies; empty for arrays on accelerators.

  Every save uses the same buffers, since allocating takes longer than copying.

  Args:
    tree: arrays, or their shapes and shardings.

  Returns:
    For each array one numpy array per addressable shard.
  """

  def allocate(x: jax.Array | jax.ShapeDtypeStruct) -> list[np.ndarray]:
    if not _on_cpu(x):
      return []
    dtype, shape = np.dtype(x.dtype), x.sharding.shard_shape(x.shape)
    shards = []
    for _ in x.sharding.addressable_devices:
      # Page-aligned, so that `jax.device_put` does not copy it; written to, so that it is mapped.
      shard = np.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), dtype)
      np.copyto(shard, 0)
      shards.append(shard.reshape(shape))
    return shards

  return jax.tree.map(allocate, tree)


def copy_on_cpu(x: jax.Array, buffers: list[np.ndarray]) -> jax.Array:
  """Copies an array that is on CPU into its buffers; returns other arrays as they are.

  Orbax reads CPU arrays without a copy, so the next step could not update them in place.
  """
  if not _on_cpu(x):
    return x
  # By shard: `jnp.copy` of a multi-process array would launch a program.
  shards = []
  for buffer, shard in zip(buffers, x.addressable_shards, strict=True):
    np.copyto(buffer, shard.data)
    shards.append(jax.device_put(buffer, shard.device))
  return jax.make_array_from_single_device_arrays(x.shape, x.sharding, shards)


def _on_cpu(x: jax.Array | jax.ShapeDtypeStruct) -> bool:
  return all(d.platform == "cpu" for d in x.sharding.device_set)
