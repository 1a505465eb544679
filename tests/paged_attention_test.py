"""Paged attention against dense attention in numpy, over ragged, permuted, poisoned pages."""

import jax
import numpy as np
import pytest
from simpo_jax.kernels.paged_attention import paged_attention, paged_prefill

TOLERANCE = 1e-5


def _dense(q, k, v, positions, window):
  """`q [T, H, h]`, `k, v [S, K, h]`; query t sees keys up to positions[t]. float64."""
  T, H, h = q.shape
  k, v = (np.repeat(x.astype(np.float64), H // k.shape[1], axis=1) for x in (k, v))
  out = np.zeros((T, H, h))
  for t, position in enumerate(positions):
    first = max(0, position + 1 - window) if window else 0
    if position < 0:
      continue
    scores = np.einsum("hd,shd->hs", q[t].astype(np.float64), k[first : position + 1]) * h**-0.5
    weights = np.exp(scores - scores.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    out[t] = np.einsum("hs,shd->hd", weights, v[first : position + 1])
  return out


def _case(lengths, heads, kv_heads, h, page, seed=0):
  """Sequences scattered over a pool; whatever no token owns is NaN."""
  rng = np.random.default_rng(seed)
  width = -(-max(lengths) // page) + 1
  total = len(lengths) * width + 3
  pool = np.full((total, page, 2 * kv_heads, h), np.nan, np.float32)
  ids = rng.permutation(total)[: len(lengths) * width].reshape(len(lengths), width)
  ids = ids.astype(np.int32)
  keys, values = [], []
  for row, length in enumerate(lengths):
    k, v = (rng.normal(size=(length, kv_heads, h)).astype(np.float32) for _ in range(2))
    for s in range(length):
      pool[ids[row, s // page], s % page, 0::2] = k[s]
      pool[ids[row, s // page], s % page, 1::2] = v[s]
    ids[row, -(-length // page) :] = total  # "no page"
    keys.append(k)
    values.append(v)
  q = rng.normal(size=(len(lengths), heads, h)).astype(np.float32)
  return q, pool, ids, keys, values


def _ragged(page):
  return [0, 1, page - 1, page, page + 1, 3 * page, 2 * page + 3, 0, 5 * page - 1, 2]


@pytest.mark.parametrize("impl", ("reference", "xla"))
@pytest.mark.parametrize(
  "heads,kv_heads,h,page,window",
  (
    (4, 4, 64, 8, None),
    (3, 1, 64, 16, None),
    (8, 2, 128, 8, None),
    (16, 2, 16, 32, None),
    (4, 2, 64, 8, 5),
    (9, 3, 64, 8, 17),
  ),
)
def test_decode_equals_dense(impl, heads, kv_heads, h, page, window):
  lengths = _ragged(page)
  q, pool, ids, keys, values = _case(lengths, heads, kv_heads, h, page)
  run = jax.jit(lambda *a: paged_attention(*a, window=window, impl=impl))
  out = np.asarray(run(q, pool, ids, np.asarray(lengths, np.int32)))
  for row, length in enumerate(lengths):
    expected = _dense(q[row : row + 1], keys[row], values[row], [length - 1], window)[0]
    np.testing.assert_allclose(out[row], expected, atol=TOLERANCE, rtol=0, err_msg=str(length))


@pytest.mark.parametrize("window", (None, 6))
def test_prefill_chunk_equals_dense(window):
  lengths, page = [1, 7, 8, 9, 20], 8
  _, pool, ids, keys, values = _case(lengths, 4, 2, 16, page)
  rng = np.random.default_rng(1)
  q = rng.normal(size=(len(lengths), 6, 4, 16)).astype(np.float32)
  positions = np.stack(
    [np.where(np.arange(6) + n - 6 >= 0, np.arange(6) + n - 6, -1) for n in lengths]
  ).astype(np.int32)
  out = np.asarray(jax.jit(lambda *a: paged_prefill(*a, window=window))(q, pool, ids, positions))
  for row in range(len(lengths)):
    expected = _dense(q[row], keys[row], values[row], positions[row], window)
    np.testing.assert_allclose(out[row], expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("impl", ("reference", "xla"))
def test_sequences_may_share_pages(impl):
  q, pool, ids, keys, values = _case([24, 24], 4, 2, 16, 8)
  ids[1] = ids[0]
  out = np.asarray(paged_attention(q, pool, ids, np.asarray([24, 11], np.int32), impl=impl))
  for row, length in enumerate((24, 11)):
    expected = _dense(q[row : row + 1], keys[0], values[0], [length - 1], None)[0]
    np.testing.assert_allclose(out[row], expected, atol=TOLERANCE, rtol=0)
