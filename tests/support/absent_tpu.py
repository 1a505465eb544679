"""Compiles for TPUs that are not there: needs libtpu, runs nothing."""

import functools

import jax

from simpo_jax.plan.topology import topology_devices

devices = functools.cache(topology_devices)


def compile_for(topology: str, f, *shapes, **jit_options):
  """`f` compiled for one device of the topology; shapes are `(shape, dtype)`, or trees of them."""
  sharding = jax.sharding.SingleDeviceSharding(devices(topology)[0])

  def is_shape(x):
    return isinstance(x, tuple) and len(x) == 2 and isinstance(x[0], tuple)

  arguments = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(*x, sharding=sharding), shapes, is_leaf=is_shape
  )
  return jax.jit(f, **jit_options).lower(*arguments).compile()
