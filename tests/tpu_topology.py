"""Compiles for TPUs that are not there: needs libtpu, runs nothing."""

import functools
import os

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # no metadata server to ask

import jax
from jax.experimental import topologies


@functools.cache
def devices(topology: str):
  """The devices of a topology such as `v5p:2x2x1`, `v5e:2x2` or `v6e:2x2`."""
  return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices


def compile_for(topology: str, f, *shapes, **jit_options):
  """`f` compiled for one device of the topology; shapes are `(shape, dtype)`, or trees of them."""
  sharding = jax.sharding.SingleDeviceSharding(devices(topology)[0])

  def is_shape(x):
    return isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], tuple)

  arguments = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(*x, sharding=sharding), shapes, is_leaf=is_shape
  )
  return jax.jit(f, **jit_options).lower(*arguments).compile()
