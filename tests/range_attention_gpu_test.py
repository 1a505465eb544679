"""Attention over packed rows on GPU, without one: what is called, lowered, chosen and refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from simpo_jax.kernels.range_attention import choose, gpu, range_attention, refusal

from packed_rows import random_case

SHAPE = dict(heads=32, kv_heads=8, head_dim=128, row_length=4096, dtype=jnp.bfloat16, window=None)


def _gradients(attend, qkv, cotangent, mask):
  out, pullback = jax.vjp(lambda *x: attend(*x, *mask), *qkv)
  return out, *pullback(cotangent)


@pytest.fixture
def hopper(monkeypatch):
  """tokamax and jax believe in an H100 and in its cuDNN: enough to lower for it."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn
  from tokamax._src import gpu_utils
  from tokamax._src.ops.attention import api

  for name in ("triton", "mosaic_gpu"):
    for op in (api.IMPLEMENTATIONS[name], api.IMPLEMENTATIONS[name].vjp):
      monkeypatch.setattr(type(op), "supported_on", lambda *_: True)
  for name, value in dict(is_sm90=True, is_sm100=False, has_mosaic_gpu_support=True).items():
    monkeypatch.setattr(gpu_utils, name, lambda *_, value=value: value)
  monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
  monkeypatch.setattr(cudnn, "check_compute_capability", lambda _: True)


@pytest.mark.parametrize("cap", (None, 2.0))
def test_tokamax_is_given_the_same_attention(cap):
  """Its form for any platform, called as its kernels are, against our reference."""
  qkv, cotangent, mask = random_case(384, 6, 2, h=64)
  mask = [jnp.asarray(x) for x in mask]
  args = [jnp.asarray(x) for x in qkv], jnp.asarray(cotangent), mask
  compiled = jax.jit(_gradients, static_argnums=0)
  ours = compiled(functools.partial(gpu.attend, engine="xla_chunked", soft_cap=cap), *args)
  expected = compiled(functools.partial(range_attention, impl="reference", soft_cap=cap), *args)
  for a, b in zip(ours, expected, strict=True):
    np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize(
  "engine, call", [("mosaic_gpu", "mosaic_gpu"), ("triton", "triton"), ("cudnn", "fmha")]
)
def test_forward_and_backward_lower_for_cuda(hopper, engine, call):
  qkv, cotangent, mask = random_case(512, 8, 2, h=64)
  args = [jnp.asarray(x, jnp.bfloat16) for x in (*qkv, cotangent)]
  attend = functools.partial(gpu.attend, engine=engine)
  step = jax.jit(lambda q, k, v, d: _gradients(attend, (q, k, v), d, mask))
  text = step.trace(*args).lower(lowering_platforms=("cuda",)).as_text()
  kernels = [line for line in text.splitlines() if "custom_call" in line and call in line.lower()]
  assert len(kernels) >= 2, "forward and backward"


def test_tokamax_comes_first_and_cudnn_takes_short_rows(monkeypatch):
  monkeypatch.setattr(gpu, "_has_tokamax", lambda: True)
  assert choose("auto", "gpu", **SHAPE | dict(row_length=16384)) == ("gpu", None)
  monkeypatch.setattr(gpu, "_has_tokamax", lambda: False)
  monkeypatch.setattr(gpu, "_has_cudnn", lambda: True)
  assert choose("auto", "gpu", **SHAPE) == ("gpu", None)
  assert choose("auto", "gpu", **SHAPE | dict(window=512)) == ("gpu", None)
  impl, note = choose("auto", "gpu", **SHAPE | dict(row_length=16384))
  assert impl == "xla" and "16384 x 16384" in note and "pip install tokamax" in note
  impl, note = choose("auto", "gpu", **SHAPE | dict(soft_cap=50.0))
  assert impl == "xla" and "no soft cap" in note and "pip install tokamax" in note
  monkeypatch.setattr(gpu, "_has_cudnn", lambda: False)
  impl, note = choose("auto", "gpu", **SHAPE)
  assert impl == "xla" and "neither tokamax nor cuDNN" in note


@pytest.mark.parametrize(
  "change, reason",
  (
    (dict(dtype=jnp.float32), "bfloat16, not float32"),
    (dict(kv_heads=5), "not a multiple of 5 KV heads"),
    (dict(head_dim=96 + 4), "multiples of 8, not 100"),
    (dict(row_length=8192, window=512), "no sliding window over packed rows"),
    (dict(head_dim=256, soft_cap=50.0), "up to 128"),  # Gemma-2-9B
    (dict(soft_cap=50.0, window=512), "no soft cap on scores; tokamax has no sliding window"),
  ),
)
def test_refusal_says_why(monkeypatch, change, reason):
  monkeypatch.setattr(gpu, "_has_tokamax", lambda: True)
  assert reason in refusal("gpu", "gpu", **SHAPE | change)
  with pytest.raises(ValueError, match="not|no "):
    choose("gpu", "gpu", **SHAPE | change)


def test_it_does_not_run_elsewhere():
  assert "does not run on cpu" in refusal("gpu", "cpu", **SHAPE)
