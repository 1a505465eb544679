"""Copies of a state's arrays on CPU, where a save would else read what the next step updates."""

import math
import mmap
from typing import Any

import jax
import numpy as np


def copies_for(tree: dict[str, Any]) -> dict[str, Any]:
  """Host memory for the shards of every array, where `copied` copies them: on CPU.

  It is used again at every save: getting memory takes longer than copying.
  """

  def get(x: jax.Array | jax.ShapeDtypeStruct) -> list[np.ndarray]:
    if not _on_cpu(x):
      return []
    dtype, shape = np.dtype(x.dtype), x.sharding.shard_shape(x.shape)
    shards = []
    for _ in x.sharding.addressable_devices:
      # Aligned to pages, so that jax takes it as it is; written to, so that it is there.
      shard = np.frombuffer(mmap.mmap(-1, math.prod(shape) * dtype.itemsize), dtype)
      np.copyto(shard, 0)
      shards.append(shard.reshape(shape))
    return shards

  return jax.tree.map(get, tree)


def copied(x: jax.Array, memory: list[np.ndarray]) -> jax.Array:
  """A copy, where Orbax would else read the array's own memory: on CPU.

  The next step could not update in place what is being read.
  """
  if not _on_cpu(x):
    return x
  # Shard by shard: a copy of an array of several processes would be a program.
  shards = []
  for copy, shard in zip(memory, x.addressable_shards, strict=True):
    np.copyto(copy, shard.data)
    shards.append(jax.device_put(copy, shard.device))
  return jax.make_array_from_single_device_arrays(x.shape, x.sharding, shards)


def _on_cpu(x: jax.Array | jax.ShapeDtypeStruct) -> bool:
  return all(d.platform == "cpu" for d in x.sharding.device_set)
