"""Matmul: the operands have the weight's dtype, the result and its gradient the input's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simpo_jax.models.linear import activation_dtype, matmul


def _rounded(x, dtype):
  return np.asarray(jnp.asarray(x, dtype), np.float64)


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_products_of_rounded_operands_in_the_inputs_dtype(dtype):
  rng = np.random.default_rng(0)
  x, d_y = (jnp.asarray(rng.standard_normal((2, 5, n)), jnp.float32) for n in (48, 24))
  w = jnp.asarray(rng.standard_normal((48, 24)), dtype)
  y, gradients = jax.vjp(matmul, x, w)
  d_x, d_w = gradients(d_y)
  assert (y.dtype, d_x.dtype, d_w.dtype) == (jnp.float32, jnp.float32, jnp.dtype(dtype))
  x64, d_y64, w64 = (_rounded(a, dtype) for a in (x, d_y, w))
  np.testing.assert_allclose(y, x64 @ w64, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(d_x, d_y64 @ w64.T, rtol=1e-5, atol=1e-5)
  expected = np.einsum("bti,bto->io", x64, d_y64)
  rounding = 2**-8 if dtype == "bfloat16" else 1e-5
  np.testing.assert_allclose(np.asarray(d_w, np.float64), expected, rtol=rounding, atol=1e-5)


def test_bfloat16_activations_stay_bfloat16():
  """On TPU and GPU nothing is converted: the products are bfloat16 as their operands."""
  x, w = jnp.ones((1, 4, 8), jnp.bfloat16), jnp.ones((8, 8), jnp.bfloat16)
  gradient = jax.grad(lambda x, w: matmul(x, w).astype(jnp.float32).sum(), (0, 1))
  text = jax.jit(gradient).lower(x, w).as_text()
  dots = [line for line in text.splitlines() if "dot_general" in line]
  assert len(dots) == 2, text
  assert all("f32" not in line.replace("bf16", "") for line in dots), dots


@pytest.mark.parametrize("platform, expected", (("cpu", "float32"), ("tpu", "bfloat16")))
def test_activations_are_float32_on_cpu(platform, expected):
  assert activation_dtype("bfloat16", platform) == jnp.dtype(expected)
  assert activation_dtype("float32", platform) == jnp.float32
