"""Attention over packed rows: the contract, on CPU, on one device and on several."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simpo_jax.kernels.range_attention import (
  range_attention,
  select_impl,
  tpu,
  unsupported_reason,
)
from support.packed_rows import packed_rows, random_case
from support.tiers import sweep

TOLERANCE = 1e-5  # of the largest entry


def _shape(**changes) -> dict[str, Any]:
  shape = dict(heads=32, kv_heads=8, head_dim=128, row_length=8192, dtype=jnp.bfloat16, window=None)
  return shape | changes


def _close(ours, expected, what):
  error, scale = np.abs(np.asarray(ours) - expected).max(), np.abs(expected).max()
  assert error <= TOLERANCE * scale, f"{what}: off by {error:.2e}, largest {scale:.2e}"


def _dense(torch, qkv, mask, window, cap):
  """In float64, so that only our own float32 rounding counts."""
  (q, k, v), (k_start, k_end, positions) = qkv, mask
  group, keys = q.shape[2] // k.shape[2], np.arange(q.shape[1])
  seen = (keys >= k_start[..., None]) & (keys < k_end[..., None])
  seen &= positions[..., None] - positions[:, None] < (window or q.shape[1])
  k, v = (x.repeat_interleave(group, 2) for x in (k, v))
  scores = torch.einsum("bthd,bshd->bhts", q, k) * q.shape[3] ** -0.5
  scores = scores if cap is None else cap * torch.tanh(scores / cap)
  scores = scores.masked_fill(torch.tensor(~seen)[:, None], -torch.inf)
  return torch.einsum("bhts,bshd->bthd", scores.softmax(-1), v)


@pytest.mark.parametrize("impl", ("xla", "reference"))
@sweep(
  "S, H, K, window, cap",
  [
    (128, 2, 2, None, None),
    (128, 8, 2, 5, None),
    (384, 6, 2, None, 2.0),
    (384, 3, 1, 50, None),
    (512, 4, 1, None, None),
    (512, 2, 2, 300, 5.0),
  ],
  default=3,
)
def test_equals_dense_in_float64(impl, S, H, K, window, cap):
  # Slow to load, and the subprocess below has no use for it.
  torch = pytest.importorskip("torch")

  qkv, cotangent, mask = random_case(S, H, K, h=16)
  dense = [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in qkv]
  expected = _dense(torch, dense, mask, window, cap)
  (expected * torch.tensor(cotangent)).sum().backward()
  attend = functools.partial(range_attention, soft_cap=cap, impl=impl)
  mask = [jnp.asarray(x) for x in mask]
  # A window is traced where the layers have different ones.
  run = jax.jit(lambda window, *x: attend(*x, *mask, window=window))
  ours, pullback = jax.vjp(functools.partial(run, window), *qkv)
  _close(ours, expected.detach().numpy(), "attention")
  for name, grad, x in zip("qkv", pullback(jnp.asarray(cotangent)), dense, strict=True):
    _close(grad, x.grad.numpy(), f"d {name}")


def test_rows_are_packed_and_padded():
  """What the tests here and of the kernel take for granted of their masks."""
  k_start, k_end, _ = packed_rows(np.random.default_rng(512), 4, 512)
  alone = (k_start == np.arange(512)) & (k_end == k_start + 1)
  assert alone[:, -1].any(), "padding"
  assert all(len(np.unique(np.diff(row)[np.diff(row) > 1])) > 1 for row in k_start), "pairs"


# --- which implementation ----------------------------------------------------------------------


def test_auto_is_the_platforms_own():
  assert select_impl("auto", "tpu", **_shape()) == ("tpu", None)
  assert select_impl("auto", "cpu", **_shape()) == ("xla", None)
  for name in ("xla", "reference"):
    assert select_impl(name, "tpu", **_shape()) == (name, None)


def test_auto_falls_back_and_says_why_where_a_name_raises():
  impl, note = select_impl("auto", "tpu", **_shape(row_length=8000))
  assert impl == "xla" and note and "multiple of 128 tokens" in note
  with pytest.raises(ValueError, match="multiple of 128 tokens"):
    select_impl("tpu", "tpu", **_shape(row_length=8000))
  with pytest.raises(ValueError, match="does not run on cpu"):
    select_impl("tpu", "cpu", **_shape())


@pytest.mark.parametrize(
  "change, reason",
  (
    (dict(dtype=jnp.float16), "float32 or bfloat16, not float16"),
    (dict(kv_heads=5), "32 query heads are not a multiple of 5 KV heads"),
    (dict(row_length=65536), "at most 32768, not 65536"),
    (dict(window=4096), "no sliding window: one of 4096 tokens"),
  ),
)
def test_refusal_says_why(change, reason):
  assert reason in unsupported_reason("tpu", "tpu", **_shape(**change))


def test_a_window_as_long_as_the_row_is_none():
  assert unsupported_reason("tpu", "tpu", **_shape(window=8192)) is None


def test_a_jax_without_splash_attention_is_refused(monkeypatch):
  monkeypatch.setattr(tpu, "_missing", lambda: "No module named 'splash'")
  impl, note = select_impl("auto", "tpu", **_shape())
  assert impl == "xla" and note
  assert jax.__version__ in note and "'splash'" in note
