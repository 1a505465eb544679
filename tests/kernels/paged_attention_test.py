"""Paged attention against dense attention in numpy, over ragged, permuted, poisoned pages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

from simpo_jax.kernels.paged_attention import (
  Shape,
  paged_attention,
  paged_prefill,
  select_impl,
  unsupported_reason,
  write,
)
from support.tiers import sweep

TOLERANCE = 1e-5
BF16 = 2e-2  # outputs are below 4 and weights sum to 1: two roundings to 8 bits


def _dense(q, k, v, positions, window=None, soft_cap=None):
  """`q [T, H, h]`, `k, v [S, K, h]`; query t sees keys up to positions[t]. float64."""
  T, H, h = q.shape
  k, v = (np.repeat(x.astype(np.float64), H // k.shape[1], axis=1) for x in (k, v))
  out = np.zeros((T, H, h))
  for t, position in enumerate(positions):
    first = max(0, position + 1 - window) if window else 0
    if position < 0:
      continue
    scores = np.einsum("hd,shd->hs", q[t].astype(np.float64), k[first : position + 1]) * h**-0.5
    if soft_cap:
      scores = soft_cap * np.tanh(scores / soft_cap)
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    out[t] = np.einsum("hs,shd->hd", weights, v[first : position + 1])
  return out


PLAIN = ("reference", "xla", "cpu")


def _pool(total, page, kv_heads, h, dtype, impl):
  """A pool of NaN, and views of its keys and values, `[total, page, K, h]`, as `impl` has them."""
  if impl != "cpu":
    pool = np.full((total, page, kv_heads, 2, h), np.nan, dtype)
    return pool.reshape(total, page, -1), pool[:, :, :, 0], pool[:, :, :, 1]
  pool = np.full((total, 2, kv_heads * h * page), np.nan, dtype)
  keys = pool[:, 0].reshape(total, kv_heads, h, page).transpose(0, 3, 1, 2)
  values = pool[:, 1].reshape(total, kv_heads, page, h).transpose(0, 2, 1, 3)
  assert np.shares_memory(pool, keys) and np.shares_memory(pool, values)
  return pool.reshape(total, page, -1), keys, values


def _case(lengths, kv_heads, h, page, impl, seed=0, dtype: DTypeLike = np.float32):
  """Sequences scattered over a pool; whatever no token owns is NaN."""
  rng = np.random.default_rng(seed)
  width = -(-max(lengths) // page) + 1
  total = len(lengths) * width + 3
  pool, pool_keys, pool_values = _pool(total, page, kv_heads, h, dtype, impl)
  ids = rng.permutation(total)[: len(lengths) * width].reshape(len(lengths), width)
  ids = ids.astype(np.int32)
  keys, values = [], []
  for row, length in enumerate(lengths):
    k, v = (rng.normal(size=(length, kv_heads, h)).astype(dtype) for _ in range(2))
    for s in range(length):
      pool_keys[ids[row, s // page], s % page] = k[s]
      pool_values[ids[row, s // page], s % page] = v[s]
    ids[row, -(-length // page) :] = rng.choice([total, total + 10**6, -1])  # "no page"
    keys.append(k)
    values.append(v)
  return pool, ids, keys, values


def _queries(*shape, dtype: DTypeLike = np.float32, seed=1):
  return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def _ragged(page):
  return [0, 1, page - 1, page, page + 1, 3 * page, 2 * page + 3, 0, 5 * page - 1, 2]


@pytest.mark.parametrize("impl", PLAIN)
@sweep(
  "heads,kv_heads,h,page,options",
  (
    (4, 4, 64, 8, {}),
    (3, 1, 64, 16, {}),
    (8, 2, 128, 8, {}),
    (16, 2, 16, 32, {}),
    (16, 1, 256, 128, {}),
    (4, 1, 80, 64, {}),
    (2, 2, 96, 256, {}),
    (4, 2, 64, 8, dict(window=5)),
    (9, 3, 64, 8, dict(window=17)),
    (4, 2, 64, 128, dict(window=100)),
    (4, 2, 64, 8, dict(soft_cap=1.5)),
    (4, 2, 64, 16, dict(soft_cap=3.0, window=20)),
  ),
  default=4,
)
def test_decode_equals_dense(impl, heads, kv_heads, h, page, options):
  lengths = _ragged(page)
  pool, ids, keys, values = _case(lengths, kv_heads, h, page, impl)
  q = _queries(len(lengths), heads, h)
  run = jax.jit(lambda *a: paged_attention(*a, **options, impl=impl))
  out = np.asarray(run(q, pool, ids, np.asarray(lengths, np.int32)))
  for row, length in enumerate(lengths):
    expected = _dense(q[row : row + 1], keys[row], values[row], [length - 1], **options)[0]
    np.testing.assert_allclose(out[row], expected, atol=TOLERANCE, rtol=0, err_msg=str(length))
  assert not out[[0, 7]].any(), "dead rows are 0"


@pytest.mark.parametrize("impl", PLAIN)
def test_bfloat16_equals_dense(impl):
  lengths, page = _ragged(16), 16
  pool, ids, keys, values = _case(lengths, 2, 64, page, impl, dtype=jnp.bfloat16)
  q = _queries(len(lengths), 8, 64, dtype=jnp.bfloat16)
  run = jax.jit(lambda *a: paged_attention(*a, impl=impl))
  out = run(q, pool, ids, np.asarray(lengths, np.int32))
  assert out.dtype == jnp.bfloat16
  for row, length in enumerate(lengths):
    expected = _dense(q[row : row + 1], keys[row], values[row], [length - 1])[0]
    np.testing.assert_allclose(
      np.asarray(out[row], np.float32), expected, atol=BF16, rtol=0, err_msg=str(length)
    )


@pytest.mark.parametrize("impl", PLAIN)
@pytest.mark.parametrize("options", ({}, dict(window=6), dict(soft_cap=2.0)))
def test_prefill_chunk_equals_dense(impl, options):
  T, page = 6, 8
  #          first chunk; a whole one; across a page; a part; nothing; far in
  start, count = [0, 0, 5, 8, 3, 61], [1, 6, 6, 2, 0, 5]
  lengths = [s + n for s, n in zip(start, count, strict=True)]
  pool, ids, keys, values = _case(lengths, 2, 16, page, impl)
  q = _queries(len(lengths), T, 4, 16)
  run = jax.jit(lambda *a: paged_prefill(*a, **options, impl=impl))
  out = np.asarray(run(q, pool, ids, np.asarray(start, np.int32), np.asarray(count, np.int32)))
  for row, (s, n) in enumerate(zip(start, count, strict=True)):
    positions = [s + t if t < n else -1 for t in range(T)]
    expected = _dense(q[row], keys[row], values[row], positions, **options)
    np.testing.assert_allclose(out[row], expected, atol=TOLERANCE, rtol=0, err_msg=str(row))
    assert not out[row, n:].any(), "0 where there is no query"


@pytest.mark.parametrize("impl", PLAIN)
def test_sequences_may_share_pages(impl):
  pool, ids, keys, values = _case([24, 24], 2, 16, 8, impl)
  q = _queries(2, 4, 16)
  ids[1] = ids[0]
  run = jax.jit(lambda *a: paged_attention(*a, impl=impl))
  out = np.asarray(run(q, pool, ids, np.asarray([24, 11], np.int32)))
  for row, length in enumerate((24, 11)):
    expected = _dense(q[row : row + 1], keys[0], values[0], [length - 1])[0]
    np.testing.assert_allclose(out[row], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("impl", ("xla", "cpu"))
@pytest.mark.parametrize("T", (1, 5))
def test_a_row_is_the_same_bit_for_bit_beside_any_others(impl, T):
  """Alone, among others, reordered, and beside rows that are NaN from end to end."""
  page, heads, kv_heads, h = 8, 6, 2, 16
  lengths = [3, 40, 17, 8, 9, 64, 1, 33, 12, 5, 40, 25, 16, 7, 50, 2, 31]
  pool, ids, *_ = _case(lengths, kv_heads, h, page, impl)
  q = _queries(len(lengths), T, heads, h)
  count = np.minimum(T, lengths).astype(np.int32)
  start = (lengths - count).astype(np.int32)
  run = jax.jit(lambda *a: paged_prefill(*a, impl=impl))
  together = np.asarray(run(q, pool, ids, start, count))
  assert np.isfinite(together).all() and together.any(axis=(1, 2, 3)).all()
  rng = np.random.default_rng(0)
  for rows in ([5], [0, 5], rng.permutation(len(lengths)), rng.permutation(len(lengths))[:11]):
    out = np.asarray(run(q[rows], pool, ids[rows], start[rows], count[rows]))
    np.testing.assert_array_equal(out, together[rows])

  bad = [1, 6, 13]
  poisoned, bad_q = np.array(pool), q.copy()
  for row in bad:
    poisoned[ids[row, : -(-lengths[row] // page)]] = np.nan
    bad_q[row] = np.nan
  out = np.asarray(run(bad_q, poisoned, ids, start, count))
  good = [row for row in range(len(lengths)) if row not in bad]
  np.testing.assert_array_equal(out[good], together[good])
  assert all(np.isnan(out[row]).any() for row in bad)


@pytest.mark.parametrize("impl", ("xla", "cpu"))
def test_what_is_written_is_what_is_read(impl):
  """`write` and attention agree on a page, whatever was written before, also beyond a page."""
  page, heads, kv_heads, h, T = 4, 4, 2, 8, 6
  pool, ids, keys, values = _case([9, 2, 0, 5], kv_heads, h, page, impl)
  total = pool.shape[0]
  new_k, new_v = (_queries(4, T, kv_heads, h, seed=s) for s in (2, 3))
  start, count = np.asarray([9, 2, 0, 5], np.int32), np.asarray([2, 6, 6, 0], np.int32)
  spare = [p for p in range(total) if p not in ids]  # rows 1 and 2 grow into new pages
  ids[1, 1], ids[2, :2] = spare[0], spare[1:3]
  run = jax.jit(lambda *a: write(*a, impl=impl))
  written = run(pool, ids, start, count, new_k, new_v)
  q = _queries(4, T, heads, h, seed=4)
  attend = jax.jit(lambda *a: paged_prefill(*a, impl=impl))
  out = np.asarray(attend(q, written, ids, start, count))
  for row, (s, n) in enumerate(zip(start, count, strict=True)):
    k = np.concatenate([keys[row], new_k[row, :n]])
    v = np.concatenate([values[row], new_v[row, :n]])
    expected = _dense(q[row], k, v, [s + t if t < n else -1 for t in range(T)])
    np.testing.assert_allclose(out[row], expected, atol=TOLERANCE, rtol=0, err_msg=str(row))
  changed = (np.asarray(written) != pool) & ~(np.isnan(written) & np.isnan(pool))
  assert changed.sum() == 2 * kv_heads * h * count.sum(), "only the valid tokens are written"


def _shape(pages_per_seq):
  return Shape(
    heads=32,
    kv_heads=8,
    head_dim=128,
    page_size=128,
    dtype=jnp.bfloat16,
    queries=128,
    slots=128,
    pages_per_seq=pages_per_seq,
  )


def test_the_platform_decides_unless_a_kernel_is_asked_for():
  shape = _shape(18)
  assert select_impl("auto", "cpu", **shape) == ("cpu", None)
  assert select_impl("auto", "tpu", **shape) == ("tpu", None)
  assert select_impl("auto", "gpu", **shape) == ("gpu", None)
  assert select_impl("reference", "tpu", **shape) == ("reference", None)
  with pytest.raises(ValueError, match="the tpu kernel does not run on cpu"):
    select_impl("tpu", "cpu", **shape)


def test_a_shape_that_a_kernel_cannot_take_is_refused_with_the_reason():
  huge = _shape(10_000)
  name, reason = select_impl("auto", "tpu", **huge)
  assert name == "xla" and reason
  assert "scalar memory" in reason and "use larger pages" in reason
  with pytest.raises(ValueError, match="scalar memory"):
    select_impl("tpu", "tpu", **huge)
  assert unsupported_reason("xla", "tpu", **huge) is None
