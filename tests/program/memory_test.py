"""Memory by mode: branches of known size in a switch."""

import jax
import jax.numpy as jnp
import pytest

from simpo_jax.program import hlo
from simpo_jax.program.ledger import Mode
from simpo_jax.program.memory import memory_of, read_assignment

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


DUMP = """\
BufferAssignment:
allocation 0: size 1000, parameter 0, shape |f32[250]| at ShapeIndex {}, maybe-live-out:
 value: <1 x @0> (size=1000,offset=0): f32[250]{0}
allocation 1: size 64, color 1, preallocated-temp:
 value: <2 train.1 @1> (size=64,offset=0): f32[16]{0:S(1)}
allocation 2: size 900, preallocated-temp:
 value: <3 train.1 @0> (size=400,offset=0): f32[100]{0:T(128)}
 value: <4 train.2{1} @0> (size=400,offset=200): f32[100]{0:T(128)}
 value: <5 generate.1 @0> (size=300,offset=600): (f32[50]{0}, s32[])
 value: <6 generate.1 (phi) @0> (size=300,offset=600): f32[75]{0}
"""
BRANCHES = """\
HloModule m
%train (p: f32[]) -> f32[] {
  %train.1 = f32[100]{0} iota(), iota_dimension=0
  ROOT %train.2 = f32[] parameter(0)
}
%generate (q: f32[]) -> f32[] {
  ROOT %generate.1 = f32[] parameter(0)
}
%evaluate (r: f32[]) -> f32[] {
  ROOT %evaluate.1 = f32[] parameter(0)
}
%abort (s: f32[]) -> f32[] {
  ROOT %abort.1 = f32[] parameter(0)
}
ENTRY %main (i: s32[], x: f32[]) -> f32[] {
  %i = s32[] parameter(0)
  %x = f32[] parameter(1)
  ROOT %c = f32[] conditional(%i, %x, %x, %x, %x), branch_computations={BRANCHES}
}
"""


def test_a_dumped_assignment_tells_modes_apart():
  text = BRANCHES.replace("BRANCHES", "%train, %generate, %evaluate, %abort")
  found = read_assignment(DUMP, hlo.parse(text))
  assert found.total == 1900  # what lies nearer than main memory is left out
  assert found.by_mode == {"train": 600, "generate": 300, "evaluate": 0, "abort": 0}
  assert [(b.bytes, b.name) for b in found.largest["train"]] == [(400, "train.1"), (400, "train.2")]
  with pytest.raises(ValueError, match="no temporaries of the program's"):
    read_assignment(DUMP.replace("train.", "t.").replace("generate.", "g."), hlo.parse(text))
