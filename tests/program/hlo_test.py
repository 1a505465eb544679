"""Reading a compiled program: small programs written by hand, and real ones, with known counts."""

import functools
import textwrap
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simpo_jax.generate.sampling.choose import choose
from simpo_jax.generate.sampling.settings import Across, Sampling, Switches, launch_of
from simpo_jax.plan import costs
from simpo_jax.program import hlo
from support.overlap import crosses_hosts

PROGRAM = textwrap.dedent("""\
  HloModule jit_f, is_scheduled=true

  %sum (a: f32[], b: f32[]) -> f32[] {
    %a = f32[] parameter(0)
    %b = f32[] parameter(1)
    ROOT %add.1 = f32[] add(%a, %b)
  }

  %slice_and_multiply (w: bf16[8,64,32], x: bf16[16,64], i: s32[]) -> f32[16,32] {
    %w = bf16[8,64,32]{2,1,0:T(8,128)(2,1)} parameter(0)
    %x = bf16[16,64]{1,0} parameter(1)
    %i = s32[] parameter(2)
    %zero = s32[] constant(0)
    %layer = bf16[1,64,32]{2,1,0} dynamic-slice(%w, %i, %zero, %zero), dynamic_slice_sizes={1,64,32}
    %matrix = bf16[64,32]{1,0} bitcast(%layer)
    ROOT %product = f32[16,32]{1,0} convolution(%x, %matrix), dim_labels=bf_io->bf
  }

  %write (pool: f32[100,32], new: f32[1,32], i: s32[]) -> f32[100,32] {
    %pool = f32[100,32]{1,0} parameter(0)
    %new = f32[1,32]{1,0} parameter(1)
    %i.1 = s32[] parameter(2)
    %zero.1 = s32[] constant(0)
    ROOT %written = f32[100,32]{1,0} dynamic-update-slice(%pool, %new, %i.1, %zero.1)
  }

  %body (p: (s32[], bf16[8,64,32], bf16[16,64], f32[100,32], f32[1,32])) -> (s32[]) {
    %p = (s32[], bf16[8,64,32]{2,1,0}, bf16[16,64]{1,0}, f32[100,32]{1,0}, f32[1,32]{1,0}) parameter(0)
    %count = s32[] get-tuple-element(%p), index=0
    %w.1 = bf16[8,64,32]{2,1,0} get-tuple-element(%p), index=1
    %x.1 = bf16[16,64]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p), index=2
    %pool.1 = f32[100,32]{1,0} get-tuple-element(%p), index=3
    %new.1 = f32[1,32]{1,0} get-tuple-element(%p), index=4
    %two = s32[] constant(2)
    %next = s32[] add(%count, %two)
    %fusion.1 = f32[16,32]{1,0} fusion(%w.1, %x.1, %count), kind=kOutput, calls=%slice_and_multiply
    %all-reduce.1 = f32[16,32]{1,0} all-reduce(%fusion.1), channel_id=1, replica_groups=[2,2]<=[2,2]T(1,0), use_global_device_ids=true, to_apply=%sum, metadata={op_name="jit(f)/layers/psum"}
    %fusion.2 = f32[100,32]{1,0} fusion(%pool.1, %new.1, %count), kind=kLoop, calls=%write
    ROOT %out = (s32[], bf16[8,64,32]{2,1,0}, bf16[16,64]{1,0}, f32[100,32]{1,0}, f32[1,32]{1,0}) tuple(%next, %w.1, %x.1, %fusion.2, %new.1)
  }

  %condition (q: (s32[], bf16[8,64,32], bf16[16,64], f32[100,32], f32[1,32])) -> pred[] {
    %q = (s32[], bf16[8,64,32]{2,1,0}, bf16[16,64]{1,0}, f32[100,32]{1,0}, f32[1,32]{1,0}) parameter(0)
    %count.1 = s32[] get-tuple-element(%q), index=0
    %eight = s32[] constant(8)
    ROOT %less = pred[] compare(%count.1, %eight), direction=LT
  }

  ENTRY %main (w.2: bf16[8,64,32], x.2: bf16[16,64], pool.2: f32[100,32], new.2: f32[1,32]) -> f32[100,32] {
    %w.2 = bf16[8,64,32]{2,1,0} parameter(0)
    %x.2 = bf16[16,64]{1,0} parameter(1)
    %pool.2 = f32[100,32]{1,0} parameter(2)
    %new.2 = f32[1,32]{1,0} parameter(3)
    %start = s32[] constant(0)
    %first = (s32[], bf16[8,64,32]{2,1,0}, bf16[16,64]{1,0}, f32[100,32]{1,0}, f32[1,32]{1,0}) tuple(%start, %w.2, %x.2, %pool.2, %new.2)
    %loop = (s32[], bf16[8,64,32]{2,1,0}, bf16[16,64]{1,0}, f32[100,32]{1,0}, f32[1,32]{1,0}) while(%first), condition=%condition, body=%body, metadata={op_name="jit(f)/layers/while"}
    ROOT %result = f32[100,32]{1,0} get-tuple-element(%loop), index=3
  }
  """)  # noqa: E501


def test_a_loop_is_counted_as_often_as_it_runs():
  module = hlo.parse(PROGRAM)
  main = costs.region(module, module.entry)
  [loop] = main.loops
  assert (main.flops, main.bytes) == (0, 0)
  assert loop.trips == 4  # from 0 to 8 by 2
  assert loop.scope == "jit(f)/layers/while"
  assert loop.flops == 2 * 16 * 64 * 32
  layer, product, row = 64 * 32 * 2, 16 * 32 * 4, 32 * 4
  # x lies in VMEM; of the weights one layer is read, of the pool one row written.
  scalar = 4  # the counter: read by the fusions, read and written by its addition, twice
  expected = (layer + product) + 2 * product + (row + row) + 2 * scalar + 3 * scalar
  assert loop.bytes == expected
  total = costs.total(main, lambda loop: 1 / 0)
  assert total.flops == 4 * loop.flops
  [(collective, times)] = total.collectives
  assert (collective.kind, collective.shapes, collective.bytes, times) == (
    "all-reduce",
    "f32[16,32]",
    product,
    4,
  )
  assert collective.groups() == [[0, 2], [1, 3]]
  assert crosses_hosts(collective, 2) and not crosses_hosts(collective, 4)


def test_a_loop_of_unknown_length_asks():
  text = PROGRAM.replace("%eight = s32[] constant(8)", "%eight = s32[] parameter(1)")
  module = hlo.parse(text)
  main = costs.region(module, module.entry)
  assert main.loops[0].trips is None
  assert costs.total(main, lambda loop: 10).flops == 10 * 2 * 16 * 64 * 32


@pytest.mark.parametrize(
  "line,moved",
  (
    # Into VMEM, S(1): only the reading counts, of a slice only the slice.
    ("(f32[64]{0:S(1)}, f32[64]{0}, u32[]{:S(2)}) copy-start(%x)", 64 * 4),
    ("((f32[64]{0}), f32[16]{0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:16]}", 16 * 4),
    ("f32[16]{0} slice(%x), slice={[0:16]}", 2 * 16 * 4),
    ("f32[64]{0} negate(%x)", 2 * 64 * 4),
    ("f32[4,16]{1,0} bitcast(%x)", 0),
    ('f32[64]{0} custom-call(%x), custom_call_target="AllocateBuffer"', 0),
  ),
)
def test_bytes_of_main_memory(line, moved):
  text = (
    f"ENTRY %f (x: f32[64]) -> f32[] {{\n  %x = f32[64]{{0}} parameter(0)\n  ROOT %y = {line}\n}}"
  )
  module = hlo.parse(text)
  assert costs.region(module, "f").bytes == moved


@pytest.mark.parametrize(
  "text,groups",
  (
    ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
    ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [[0, 2], [1, 3]]),
    ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [[0, 1, 2, 3]]),
    ("replica_groups=mesh['a'=4], device_ids=([2,2]T(1,0)) {'a'}, x", [[0, 2, 1, 3]]),
    ("source_target_pairs={{0,1},{1,0}}", [[0, 1], [1, 0]]),
  ),
)
def test_groups_in_all_notations(text, groups):
  assert hlo.replica_groups(f"%x), {text}, channel_id=1") == groups


def test_groups_that_cannot_be_read_are_an_error():
  with pytest.raises(ValueError, match="a part of an axis"):
    hlo.replica_groups("replica_groups=mesh['a'=4] {'a':(1)2}")
  with pytest.raises(ValueError, match="no replica groups"):
    hlo.replica_groups("%x), channel_id=1")


def instruction(line, *others):
  text = "\n".join(["ENTRY %f () -> f32[] {", *(f"  {x}" for x in (*others, f"ROOT {line}")), "}"])
  module = hlo.parse(text)
  return costs.matmul_flops(next(reversed(module.computations["f"].values())),
                            module.computations["f"])  # fmt: skip


@pytest.mark.parametrize(
  "left,right,out,attributes,flops",
  (
    ("bf16[8,4]", "bf16[4,5]", "f32[8,5]", "dim_labels=bf_io->bf", 2 * 8 * 4 * 5),
    # A batch of matrix products, as TPU compilers write it.
    (
      "f32[3,8,4]",
      "f32[3,4,5]",
      "f32[3,8,5]",
      "window={size=3 stride=2 lhs_dilate=3}, dim_labels=0bf_0io->0bf",
      2 * 3 * 8 * 4 * 5,
    ),
    # One row of heads against all, padded on both sides.
    (
      "bf16[8,6,1]",
      "bf16[4,6,5]",
      "bf16[8,4,5]",
      "window={size=4 pad=3_3 rhs_reversal=1}, dim_labels=bf0_0io->b0f",
      2 * 8 * 6 * 4 * 5,
    ),
    # A true convolution of 3 taps over 10, without padding.
    ("f32[2,10,4]", "f32[3,4,5]", "f32[2,8,5]", "window={size=3}, dim_labels=b0f_0io->b0f",
     2 * 2 * 8 * 3 * 4 * 5),
  ),
)  # fmt: skip
def test_flops_of_products(left, right, out, attributes, flops):
  assert flops == instruction(
    f"%y = {out} convolution(%a, %b), {attributes}",
    f"%a = {left} parameter(0)",
    f"%b = {right} parameter(1)",
  )


def test_a_program_compiled_here():
  """Products in a scan, in a branch, and a count that XLA itself gives for the plain one."""

  def layers(w, x):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0]

  def f(i, w, x):
    return jax.lax.switch(i, [layers, lambda w, x: x @ w[0], lambda w, x: x], w, x)

  w, x = np.zeros((5, 32, 32), np.float32), np.zeros((16, 32), np.float32)
  module = hlo.parse(jax.jit(f).lower(0, w, x).compile().as_text() or "")
  names = hlo.branches(module, 3)
  one = 2 * 16 * 32 * 32
  totals = [costs.total(costs.region(module, n), lambda loop: 1 / 0) for n in names]
  assert [t.flops for t in totals] == [5 * one, one, 0]
  assert totals[0].bytes >= w.nbytes
  with pytest.raises(ValueError, match="0 conditionals of 4 branches"):
    hlo.branches(module, 4)
  assert set(hlo.reachable(module, names[0])).isdisjoint(hlo.reachable(module, names[2]))


def test_an_exchange_behind_several_fusions_counts_once():
  """As TPU compilers write it: started in one fusion, going on in the next, done in a third."""
  gather = (
    "%gathered = f32[8]{0} all-gather(%x), channel_id=1, replica_groups=[1,2]<=[2], "
    'dimensions={0}, frontend_attributes={chain_id="1"}'
  )
  start = '%more = (f32[8]{0}, u32[]) custom-call(%gathered), custom_call_target="AsyncCollective"'
  text = "\n".join(
    f"%{name} (x: f32[4]) -> f32[8] {{\n  %x = f32[4]{{0}} parameter(0)\n  {gather}\n"
    f"  ROOT {start.replace('AsyncCollective', 'AsyncCollective' + name)}\n}}\n"
    for name in ("Start", "Step", "Done")
  )
  text += "ENTRY %main (y: f32[4]) -> f32[8] {\n  %y = f32[4]{0} parameter(0)\n"
  for name in ("Start", "Step", "Done"):
    text += f"  %{name}.1 = f32[8]{{0}} fusion(%y), kind=kCustom, calls=%{name}\n"
  module = hlo.parse(text + "  ROOT %z = f32[8]{0} negate(%Done.1)\n}\n")
  [exchange] = costs.region(module, "main").collectives
  assert (exchange.kind, exchange.bytes) == ("all-gather", 8 * 4)


ROWS, VOCAB, CHIPS = 16, 128_256, 4


def _exchanges(switches, penalty=False, launched=False):
  """The exchanges of one choice of tokens, compiled for a v5e with the vocabulary on 4 chips."""
  from jax.sharding import Mesh, NamedSharding
  from jax.sharding import PartitionSpec as P

  from support import absent_tpu

  mesh = Mesh(np.asarray(absent_tpu.devices("v5e:2x2")), "x")
  whole = NamedSharding(mesh, P())
  replicate = functools.partial(jax.lax.with_sharding_constraint, shardings=whole)
  across = Across(CHIPS, replicate)

  def array(*shape, dtype: Any = np.float32, spec=()) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(mesh, P(*spec)))

  def chosen(x, w, sampling, u, seen):
    launch = launch_of(sampling, across) if launched else None
    seen = seen if penalty else None
    return choose(x @ w.T, sampling, u, switches, seen, launch=launch, across=across)

  numbers = array(ROWS)
  sampling = Sampling(numbers, array(ROWS, dtype=np.int32), *[numbers] * 3)
  arrays = array(ROWS, 128), array(VOCAB, 128, spec="x"), sampling, array(ROWS, 3)
  seen = array(ROWS, VOCAB, dtype=bool, spec=(None, "x"))
  return hlo.collectives(jax.jit(chosen).lower(*arrays, seen).compile().as_text() or "")


@pytest.mark.tpu_compile
@pytest.mark.parametrize(
  "switches,penalty,reduces,gathers",
  (
    (Switches(False, 0, False), False, 3, 0),
    (Switches(True, 0, False), False, 4, 1),
    (Switches(True, 50, False), False, 4, 2),
    (Switches(True, 50, True), False, 4, 3),
    (Switches(True, 300, True), True, 5, 3),
  ),
)
def test_sampling_exchanges_little_where_chips_divide_the_vocabulary(
  switches, penalty, reduces, gathers
):
  pytest.importorskip("libtpu")
  found = _exchanges(switches, penalty)
  always = [c.kind for c in found if "/while/" not in c.scope]
  assert always.count("all-reduce") <= reduces and always.count("all-gather") <= gathers
  assert set(always) <= {"all-reduce", "all-gather"}
  assert max(c.bytes for c in found) <= ROWS * CHIPS * 300 * 4  # of [ROWS, VOCAB], 1 %
  assert bool([c for c in found if "/while/" in c.scope]) == switches.top_p


@pytest.mark.tpu_compile
def test_a_greedy_launch_of_a_program_that_samples_exchanges_what_a_greedy_program_does():
  pytest.importorskip("libtpu")
  kinds = [
    sorted(c.kind for c in found if "branch_1" not in c.scope)
    for found in (_exchanges(Switches(True, 50, True), launched=True),
                  _exchanges(Switches(False, 0, False)))
  ]  # fmt: skip
  # Two of the latter are one of two arrays.
  assert kinds == [["all-reduce"] * 4, ["all-reduce"] * 3]
