"""The TPU kernel: simulated on CPU against the oracle, and compiled by the real compiler."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call as interpreter
from jax.experimental.pallas import tpu as pltpu

from simpo_jax.generate import kv_pages
from simpo_jax.kernels import paged_attention as contract
from simpo_jax.kernels.paged_attention import reference, tpu
from simpo_jax.program.hlo import copies
from support.tiers import sweep

pytestmark = pytest.mark.tpu_compile

F32, BF16 = jnp.float32, jnp.bfloat16
NO_PAGE = 2**30  # the simulator raises on a fetch of it
TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")
MODELS = {  # heads, KV heads, head dim
  "llama3_8b": (32, 8, 128),
  "llama3_8b_tp4": (8, 2, 128),
  "smollm2_135m": (9, 3, 64),
  "qwen25_05b": (14, 2, 64),
  "qwen25_7b": (28, 4, 128),
}


# --- numbers ---------------------------------------------------------------------------------


def _case(lengths, count, T, heads, kv_heads, h, page, dtype):
  """Rows scattered over a pool; the last shares the pages of the one before it.

  Whatever no query may look at is NaN: unwritten tokens, queries that are not real.
  """
  rng = np.random.default_rng(0)
  lengths, count = np.asarray(lengths, np.int32), np.asarray(count, np.int32)
  rows, width = len(lengths), -(-max(lengths) // page) + 1
  total = rows * width + 3
  ids = rng.permutation(total)[: rows * width].reshape(rows, width).astype(np.int32)
  ids[-1] = ids[-2]
  ids[np.arange(width) >= -(-lengths[:, None] // page)] = NO_PAGE
  pool = np.full((total, page, 2 * kv_heads * h), np.nan, np.float32)
  for row in range(rows - 1):
    s = np.arange(lengths[row])
    pool[ids[row, s // page], s % page] = rng.normal(size=(len(s), pool.shape[2]))
  q = rng.normal(size=(rows, T, heads, h))
  q[np.arange(T) >= count[:, None]] = np.nan
  return jnp.asarray(q, dtype), jnp.asarray(pool, dtype), ids, lengths - count, count


def _check(q, pool, ids, start, count, cores=1, **options):
  """The kernel's result is the oracle's; no query is 0; no data race."""
  params = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=cores)
  out = np.asarray(
    jax.jit(lambda *a: tpu.attend(*a, interpret=params, **options))(q, pool, ids, start, count),
    np.float32,
  )
  races = interpreter.races
  assert races is not None and not races.races_found
  ids = jnp.minimum(ids, len(pool) - 1)
  start, count = jnp.asarray(start), jnp.asarray(count)
  oracle = jax.jit(lambda q, pool: reference.attend(q, pool, ids, start, count, **options))
  expected = np.asarray(oracle(q.astype(F32), pool.astype(F32)))
  tolerance = 1e-5
  if q.dtype == BF16:
    # A weight in bfloat16 is off by 2^-8 of it, so their sum over V by 2^-8 of the sum over
    # |V|; and the result is rounded once more. All else is float32.
    h = q.shape[-1]
    is_value = np.arange(pool.shape[2]) // h % 2 == 1
    positive = jnp.where(is_value, jnp.abs(pool), pool)
    average = np.asarray(oracle(q.astype(F32), positive.astype(F32)))
    tolerance = 1e-4 + 2**-8 * (average + np.abs(expected))
  error = np.abs(out - expected)
  assert np.all(error <= tolerance), np.nanmax(error)  # a NaN fails
  absent = np.arange(q.shape[1]) >= np.asarray(count)[:, None]
  np.testing.assert_array_equal(out[absent], 0)


@pytest.fixture
def small_blocks(monkeypatch):
  """Blocks of 32 keys and tiles of 16 matmul rows: many of both in a short sequence."""
  monkeypatch.setattr(tpu, "BLOCK_KEYS", (32, 32))
  monkeypatch.setattr(tpu, "TILE", 16)


@sweep(
  "heads,kv_heads,h,page,dtype,options",
  (
    (4, 4, 64, 8, F32, {}),
    (3, 1, 80, 16, F32, {}),
    (8, 2, 96, 8, F32, dict(window=19)),
    (6, 2, 80, 32, BF16, {}),
    (8, 1, 128, 16, F32, dict(soft_cap=2.0)),
    (9, 3, 64, 16, BF16, dict(window=33)),
    (16, 1, 256, 16, F32, dict(window=1)),
    (32, 2, 128, 16, BF16, dict(window=40, soft_cap=5.0)),
  ),
  default=2,
)
def test_decode_equals_oracle(small_blocks, heads, kv_heads, h, page, dtype, options):
  lengths = [0, 1, page - 1, page, 0, 0, page + 1, 131, 2 * page, 0, 64, 133, 70]
  count = np.minimum(lengths, 1)
  _check(*_case(lengths, count, 1, heads, kv_heads, h, page, dtype), **options)


@sweep(
  "heads,kv_heads,h,page,dtype",
  ((4, 1, 96, 128, BF16), (2, 2, 64, 256, F32), (16, 2, 128, 8, F32)),
)
def test_decode_with_the_real_block_size(heads, kv_heads, h, page, dtype):
  lengths = [1, page - 1, 0, page, page + 1, 1300, 0, 1100, 1023]
  _check(*_case(lengths, np.minimum(lengths, 1), 1, heads, kv_heads, h, page, dtype))


@sweep(
  "heads,kv_heads,h,page,dtype,T,options",
  (
    (4, 2, 64, 8, F32, 21, {}),
    (3, 1, 64, 16, F32, 12, dict(window=10)),
    (3, 3, 80, 16, BF16, 20, dict(soft_cap=3.0)),
    (16, 1, 128, 32, F32, 5, dict(window=37)),
    (8, 1, 96, 8, F32, 7, {}),
    (4, 4, 256, 32, BF16, 33, dict(window=64)),
  ),
  default=2,
)
def test_prefill_chunk_equals_oracle(small_blocks, heads, kv_heads, h, page, dtype, T, options):
  count = np.asarray([T, 0, 1, T - 1, T, 3, T, 0, T, T // 2])
  start = [0, 0, page - 1, page, 90, 2 * page - 3, page - T % page, 0, 61, 35]
  _check(*_case(start + count, count, T, heads, kv_heads, h, page, dtype), **options)


@sweep("rows", (1, 5))
def test_two_cores_take_a_share_each(small_blocks, rows):
  q, pool, *rest = _case([0, 40, 70, 9, 100, 33], [0, 6, 1, 6, 5, 2], 6, 4, 2, 64, 8, F32)
  _check(q[-rows:], pool, *(x[-rows:] for x in rest), cores=2)


def test_pages_before_the_window_are_not_fetched(small_blocks):
  q, pool, ids, start, count = _case([50, 90, 17, 17], [1, 4, 2, 0], 4, 4, 2, 64, 8, F32)
  window = 11
  seen = np.maximum(start - window + 1, 0) // 8
  gone = np.where(np.arange(ids.shape[1]) < seen[:, None], NO_PAGE, ids)
  assert (gone != ids).sum() > 10
  _check(q, pool, gone, start, count, window=window)


def test_all_rows_dead():
  _check(*_case([1, 0, 0], [0, 0, 0], 2, 4, 2, 64, 8, F32))


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
  "change,reason",
  (
    (dict(dtype=jnp.int8), "float32 or bfloat16, not int8"),
    (dict(heads=9), "9 query heads are not a multiple of 2 KV heads"),
    (dict(page_size=8), "multiple of 16 tokens in bfloat16, not 8"),
    (dict(page_size=12, dtype=F32), "multiple of 8 tokens in float32, not 12"),
    (dict(slots=2048, pages_per_seq=144, page_size=16), "1168 KiB of a TPU core's scalar memory"),
    (dict(page_size=32768), "MiB of a TPU core's vector memory, more than 48"),
    (dict(kv_heads=128, heads=128, dtype=F32, pages_per_seq=2), "shard the heads"),
  ),
)
def test_refusal_says_why(change, reason):
  shape: dict[str, Any] = dict(heads=8, kv_heads=2, head_dim=128, page_size=128, dtype=BF16)
  assert contract.unsupported_reason("tpu", "tpu", **shape) is None
  assert reason in contract.unsupported_reason("tpu", "tpu", **shape | change)


# --- the TPU's compiler --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compile_for():
  pytest.importorskip("libtpu")
  from support import absent_tpu as tpu_topology

  return tpu_topology.compile_for


def _compile(compile_for, topology, model, page, dtype, slots, T, pages_per_seq=None, **options):
  """Compiles what `unsupported_reason` lets through, which must be the given shape."""
  H, K, h = MODELS[model] if model in MODELS else model
  n = pages_per_seq or -(-2304 // page)
  shape = contract.Shape(
    heads=H,
    kv_heads=K,
    head_dim=h,
    page_size=page,
    dtype=dtype,
    queries=T,
    slots=slots,
    pages_per_seq=n,
  )
  assert contract.unsupported_reason("tpu", "tpu", **shape) is None
  compile_for(
    topology,
    lambda *a: tpu.attend(*a, **options),
    ((slots, T, H, h), dtype),
    ((16 * n, page, 2 * K * h), dtype),
    ((slots, n), jnp.int32),
    *(((slots,), jnp.int32),) * 2,
  )


@sweep("topology", TOPOLOGIES)
@sweep("model", MODELS)
def test_decode_compiles(compile_for, topology, model):
  for page, dtype, slots in ((128, BF16, 128), (128, F32, 32), (16, BF16, 32), (32, F32, 128)):
    _compile(compile_for, topology, model, page, dtype, slots, 1)


@sweep("topology", TOPOLOGIES)
@sweep("model", MODELS)
def test_prefill_compiles(compile_for, topology, model):
  _compile(compile_for, topology, model, 128, BF16, 32, 256)
  _compile(compile_for, topology, model, 32, F32, 128, 64)


@sweep(
  "topology,shape,page,dtype,slots,T,options",
  (
    ("v5p:2x2x1", (32, 8, 128), 128, F32, 32, 256, {}),
    ("v6e:2x2", (16, 8, 256), 128, F32, 8, 256, {}),  # 45 of 48 MiB
    ("v5e:2x2", (32, 32, 80), 16, BF16, 8, 64, {}),
    ("v5p:2x2x1", (12, 4, 96), 16, BF16, 8, 33, dict(window=1000)),
    ("v5p:2x2x1", (71, 1, 64), 128, BF16, 8, 256, {}),
    ("v5p:2x2x1", (1, 1, 32), 8, F32, 3, 5, {}),
    ("v5e:2x2", (16, 2, 256), 256, BF16, 8, 1, dict(soft_cap=50.0, window=4096)),
    ("v5e:2x2", (3, 1, 80), 16, BF16, 1, 1, {}),
  ),
)
def test_odd_shapes_compile(compile_for, topology, shape, page, dtype, slots, T, options):
  _compile(compile_for, topology, shape, page, dtype, slots, T, **options)


@sweep("topology", TOPOLOGIES)
def test_the_largest_page_table_compiles(compile_for, topology):
  _compile(compile_for, topology, "llama3_8b_tp4", 16, BF16, 1024, 1, pages_per_seq=238)


@sweep("T", (1, 256))
@sweep("model", ("llama3_8b_tp4", "smollm2_135m"))
def test_a_decode_loop_does_not_copy_the_pool(compile_for, model, T):
  H, K, h = MODELS[model]
  layers, slots, page, n = 16, 32, 128, 18
  P = slots * n
  pool = (layers * P, page, 2 * K * h)

  def decode(pool, table, start, x):
    def one_layer(layer, carry):
      pool, x, start = carry
      ids = kv_pages.layer_pages(table, layer, P, layers)
      count = jnp.full_like(start, T)
      pool = contract.write(pool, ids, start, count, x[:, :, :K], x[:, :, K : 2 * K], impl="tpu")
      return pool, x + tpu.attend(x, pool, ids, start, count), start

    def step(_, carry):
      pool, x, start = jax.lax.fori_loop(0, layers, one_layer, carry)
      return pool, x, start + T

    return jax.lax.fori_loop(0, 8, step, (pool, x, start))

  compiled = compile_for(
    "v5p:2x2x1",
    decode,
    (pool, BF16),
    ((slots, n), jnp.int32),
    ((slots,), jnp.int32),
    ((slots, T, H, h), BF16),
    donate_argnums=0,
  )
  shape = ",".join(map(str, pool))
  text = compiled.as_text()
  assert f"bf16[{shape}]" in text and "tpu_custom_call" in text
  assert not copies(text, f"bf16[{shape}]")
  pool_bytes = 2 * np.prod(pool)
  memory = compiled.memory_analysis()
  assert memory.alias_size_in_bytes >= pool_bytes
  assert memory.temp_size_in_bytes < pool_bytes / 8
