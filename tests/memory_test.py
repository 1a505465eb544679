"""Memory by mode: branches of known size in a switch."""

import jax
import jax.numpy as jnp

from simpo_jax.ledger import Mode
from simpo_jax.memory import memory_of

MIB = 2**20


def _branch(mib):
  def run(x):
    # A loop-carried array cannot be fused away.
    big = jnp.full((mib, MIB // 4), x)
    return jnp.sum(jax.lax.fori_loop(0, 3, lambda i, big: jnp.roll(big, 1, 0) + i, big))

  return run


def test_each_branch_counts_its_own_buffers():
  sizes = {Mode.TRAIN: 8, Mode.GENERATE: 4, Mode.EVALUATE: 2, Mode.ABORT: 0}
  branches = [_branch(mib) if mib else (lambda x: x) for mib in sizes.values()]
  compiled = jax.jit(lambda i, x: jax.lax.switch(i, branches, x)).lower(0, 1.0).compile()
  memory = memory_of(compiled)
  for mode, mib in sizes.items():
    assert mib * MIB <= memory.by_mode[mode.name.lower()] <= 3 * mib * MIB + 4096, memory
  # The branches share the arena: it is as large as the largest, not as their sum.
  assert max(memory.by_mode.values()) <= memory.temporaries < 26 * MIB
  assert memory.peaks()["train"] > memory.peaks()["generate"] > memory.peaks()["abort"]
