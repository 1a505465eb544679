"""The TPU kernel: interpreted on CPU against the dense one, and compiled by the real compiler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simpo_jax.kernels import range_attention as contract
from simpo_jax.kernels.range_attention import reference, splash, tpu
from support.packed_rows import packed_rows, random_case
from support.tiers import sweep

pytestmark = pytest.mark.tpu_compile

F32, BF16 = jnp.float32, jnp.bfloat16
TOPOLOGIES = ("v5e:2x2", "v5p:2x2x1", "v6e:2x2")


# --- numbers -----------------------------------------------------------------------------------


@pytest.fixture
def small_blocks(monkeypatch):
  """Many blocks in a short row."""
  for name in ("QUERY_BLOCK", "KEY_BLOCK", "COMPUTE_BLOCK"):
    monkeypatch.setattr(splash, name, 128)


def _vjp(attend, qkv, cotangent, mask, dtype=F32):
  """Attention and its gradients, as float32 numpy."""

  def run(*qkv):
    out, pullback = jax.vjp(lambda *x: attend(*x, *mask), *qkv)
    return out, *pullback(jnp.asarray(cotangent, dtype))

  mask = [jnp.asarray(x) for x in mask]
  return [np.asarray(x, np.float32) for x in jax.jit(run)(*(jnp.asarray(x, dtype) for x in qkv))]


_interpreted = functools.partial(tpu.attend, interpret=True)


@sweep(
  "S, H, K, h, cap",
  ((256, 2, 2, 128, None), (384, 6, 2, 64, 3.0), (512, 4, 1, 128, None), (384, 3, 1, 80, None)),
  default=2,
)
def test_equals_reference(small_blocks, S, H, K, h, cap):
  case = random_case(S, H, K, h)
  ours, expected = (
    _vjp(functools.partial(attend, soft_cap=cap), *case)
    for attend in (_interpreted, reference.attend)
  )
  for name, a, b, tolerance in zip(
    ("out", "dq", "dk", "dv"), ours, expected, (1e-5, 5e-5, 5e-5, 5e-5), strict=True
  ):
    error = np.abs(a - b).max() / np.abs(b).max()
    print(f"{name}: {error:.1e}")
    assert error <= tolerance, name  # a NaN fails


def test_blocks_of_keys_larger_than_of_queries_and_computed_in_parts(monkeypatch):
  monkeypatch.setattr(splash, "QUERY_BLOCK", 128)
  monkeypatch.setattr(splash, "KEY_BLOCK", 256)
  monkeypatch.setattr(splash, "COMPUTE_BLOCK", 128)
  case = random_case(512, 2, 1, 64)
  for a, b in zip(_vjp(_interpreted, *case), _vjp(reference.attend, *case), strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5 * np.abs(b).max())


def test_bfloat16_differs_by_its_rounding(small_blocks):
  qkv, *rest = random_case(384, 4, 2, 128)
  qkv = [np.asarray(jnp.asarray(x, BF16), np.float32) for x in qkv]
  ours = _vjp(_interpreted, qkv, *rest, dtype=BF16)
  for a, b in zip(ours, _vjp(reference.attend, qkv, *rest), strict=True):
    # Scores of up to 2^3 from bfloat16 products; each gradient has two roundings more.
    assert np.sqrt(np.mean((a - b) ** 2)) <= 2**-7 * np.sqrt(np.mean(b**2))


# --- what is computed, and fetched -------------------------------------------------------------


@pytest.mark.parametrize("queries, keys", ((128, 128), (128, 256), (256, 128), (512, 512)))
def test_only_blocks_with_something_to_see_are_computed(queries, keys):
  S = 2048
  k_start, k_end, _ = packed_rows(np.random.default_rng(0), 1, S)
  spans = jnp.asarray(k_start[0]), jnp.asarray(k_end[0])
  at = np.arange(S)
  seen = (at >= k_start[0][:, None]) & (at < k_end[0][:, None])
  dense = seen.reshape(S // queries, queries, S // keys, keys).any((1, 3))
  active = np.asarray(splash.seen_blocks(*spans, queries, keys))
  np.testing.assert_array_equal(active, dense)
  if max(queries, keys) < 512:
    assert active.sum() < active.size / 2
  for axis in (0, 1):
    fetched = np.asarray(splash._fetched(jnp.asarray(active), axis))
    own = np.arange(active.shape[axis])[(None, slice(None)) if axis else (slice(None), None)]
    np.testing.assert_array_equal(fetched[active], np.broadcast_to(own, active.shape)[active])
    changes = (np.diff(fetched, axis=axis) != 0).sum() + active.shape[1 - axis]
    assert changes == active.sum(), "each active block is fetched once, and nothing else"


@pytest.mark.slow
def test_what_is_in_unseen_blocks_does_not_matter(small_blocks):
  (q, k, v), cotangent, mask = random_case(512, 4, 2, 64, B=1)
  spans = jnp.asarray(mask[0][0]), jnp.asarray(mask[1][0])
  active = np.asarray(splash.seen_blocks(*spans, 128, 128))
  bad = slice(0, 128)  # keys for the forward pass and dq, queries for dk and dv
  by_query, by_key = (np.repeat(~x, 128) for x in (active[:, 0], active[0]))
  assert by_query.any() and by_key.any()
  clean = _vjp(_interpreted, (q, k, v), cotangent, mask)

  def poisoned(x):
    x = x.copy()
    x[:, bad] = np.nan
    return x

  out, dq, *_ = _vjp(_interpreted, (q, poisoned(k), poisoned(v)), cotangent, mask)
  *_, dk, dv = _vjp(_interpreted, (poisoned(q), k, v), poisoned(cotangent), mask)
  untouched = (by_query, by_query, by_key, by_key)
  for ours, expected, rows in zip((out, dq, dk, dv), clean, untouched, strict=True):
    np.testing.assert_array_equal(ours[:, rows], expected[:, rows])
    assert np.isnan(ours).any()


# --- the TPU's compiler ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def topology():
  pytest.importorskip("libtpu")
  from support import absent_tpu as tpu_topology

  return tpu_topology


def _forward_and_backward(attend):
  def run(q, k, v, k_start, k_end):
    @jax.checkpoint
    def loss(q, k, v):
      return jnp.sum(attend(q, k, v, k_start, k_end, k_start).astype(F32) ** 2)

    return jax.grad(loss, (0, 1, 2))(q, k, v)

  return run


@sweep(
  "name, B, S, H, K, h, dtype, cap",
  (
    *((name, 1, 8192, 32, 8, 128, BF16, None) for name in TOPOLOGIES),  # Llama-3-8B
    ("v5e:2x2", 1, 2048, 2, 1, 256, F32, 50.0),  # the largest blocks, the smallest chip
    ("v5p:2x2x1", 1, 4096, 16, 8, 256, BF16, 50.0),  # Gemma-2-9B
    ("v6e:2x2", 2, 640, 14, 2, 80, BF16, None),
    ("v5p:2x2x1", 3, 384, 9, 3, 64, F32, None),  # SmolLM2-135M
    ("v5p:2x2x1", 1, 32768, 2, 1, 128, BF16, None),
  ),
)
def test_compiles(topology, name, B, S, H, K, h, dtype, cap):
  shape = contract.Shape(heads=H, kv_heads=K, head_dim=h, row_length=S, dtype=dtype, soft_cap=cap)
  assert contract.select_impl("tpu", "tpu", **shape) == ("tpu", None)
  compiled = topology.compile_for(
    name,
    _forward_and_backward(functools.partial(tpu.attend, soft_cap=cap)),
    *((((B, S, n, h), dtype)) for n in (H, K, K)),
    *(((B, S), jnp.int32),) * 2,
  )
  text = compiled.as_text()
  for kernel in ("fwd_residuals", "dq_no_residuals", "dkv_no_residuals"):
    assert f"splash_mqa_{kernel}" in text
  assert f"{S},{S}]" not in text, "all scores at once"
