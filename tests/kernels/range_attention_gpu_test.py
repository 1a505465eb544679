"""Attention over packed rows on GPU, without one: what is called, lowered, chosen and refused."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from simpo_jax.kernels.range_attention import gpu, range_attention, select_impl, unsupported_reason
from support.packed_rows import random_case

H100, A100 = "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB"


def _shape(**changes) -> dict[str, Any]:
  shape = dict(heads=32, kv_heads=8, head_dim=128, row_length=4096, dtype=jnp.bfloat16, window=None)
  return shape | changes


class Device(NamedTuple):
  """An H100, as far as it is asked."""

  device_kind: str = H100
  platform: str = "gpu"
  compute_capability: str = "9.0"
  core_count: int = 132


def _gradients(attend, qkv, cotangent, mask):
  out, pullback = jax.vjp(lambda *x: attend(*x, *mask), *qkv)
  return out, *pullback(cotangent)


@pytest.fixture
def hopper(monkeypatch):
  """tokamax and jax believe in an H100 and in its cuDNN: enough to lower for it."""
  from jax._src.cudnn import fused_attention_stablehlo as cudnn
  from jax.extend import backend

  monkeypatch.setattr(backend, "get_default_device", Device)
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


def _mesh(kind):
  """Of one GPU that is not here, as plans and the train step's shard_map tell it to jax."""
  device = jax.sharding.AbstractDevice(device_kind=kind, num_cores=132, platform="gpu")
  auto = jax.sharding.AxisType.Auto
  return jax.sharding.AbstractMesh((1,), ("data",), (auto,), abstract_device=device)


@pytest.mark.parametrize(
  "kind, engine, call",
  [
    (H100, "tokamax", "mosaic_gpu"),
    (A100, "tokamax", "triton"),
    (H100, "mosaic_gpu", "mosaic_gpu"),
    (H100, "triton", "triton"),
    (H100, "cudnn", "fmha"),
  ],
)
def test_forward_and_backward_lower_for_a_gpu_that_is_not_here(hopper, kind, engine, call):
  qkv, cotangent, mask = random_case(512, 8, 2, h=64)
  args = [jnp.asarray(x, jnp.bfloat16) for x in (*qkv, cotangent)]
  attend = functools.partial(gpu.attend, engine=engine)
  step = jax.shard_map(
    lambda q, k, v, d, *mask: _gradients(attend, (q, k, v), d, mask),
    mesh=_mesh(kind),
    in_specs=P("data"),
    out_specs=P("data"),
    check_vma=False,
  )
  text = jax.jit(step).trace(*args, *mask).lower(lowering_platforms=("cuda",)).as_text()
  kernels = [line for line in text.splitlines() if "custom_call" in line and call in line.lower()]
  assert len(kernels) >= 2, "forward and backward"


def test_the_capability_is_that_of_the_mesh_or_of_this_machine(hopper):
  assert gpu._capability() == 9.0
  for kind, capability in {H100: 9.0, A100: 8.0}.items():
    with jax.sharding.use_abstract_mesh(_mesh(kind)):
      assert gpu._capability() == capability
  with jax.sharding.use_abstract_mesh(_mesh("NVIDIA X1")), pytest.raises(ValueError, match="X1"):
    gpu._capability()


def test_tokamax_comes_first_and_cudnn_takes_short_rows(monkeypatch):
  monkeypatch.setattr(gpu, "_has_tokamax", lambda: True)
  assert select_impl("auto", "gpu", **_shape(row_length=16384)) == ("gpu", None)
  monkeypatch.setattr(gpu, "_has_tokamax", lambda: False)
  monkeypatch.setattr(gpu, "_has_cudnn", lambda: True)
  assert select_impl("auto", "gpu", **_shape()) == ("gpu", None)
  assert select_impl("auto", "gpu", **_shape(window=512)) == ("gpu", None)
  impl, note = select_impl("auto", "gpu", **_shape(row_length=16384))
  assert impl == "xla" and note
  assert "16384 x 16384" in note and "pip install tokamax" in note
  impl, note = select_impl("auto", "gpu", **_shape(soft_cap=50.0))
  assert impl == "xla" and note
  assert "no soft cap" in note and "pip install tokamax" in note
  monkeypatch.setattr(gpu, "_has_cudnn", lambda: False)
  impl, note = select_impl("auto", "gpu", **_shape())
  assert impl == "xla" and note and "neither tokamax nor cuDNN" in note


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
  assert reason in unsupported_reason("gpu", "gpu", **_shape(**change))
  with pytest.raises(ValueError, match="not|no "):
    select_impl("gpu", "gpu", **_shape(**change))


def test_it_does_not_run_elsewhere():
  reason = unsupported_reason("gpu", "cpu", **_shape())
  assert reason and "does not run on cpu" in reason
