"""Matrix product and norm with gradients written out, where XLA's own are slow on a CPU."""

import functools

import jax
import jax.numpy as jnp


@jax.custom_vjp
def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
  """`x [B, T, D] @ w [D, F]`, in their dtype.

  The gradient of `w` sums over one axis, of all tokens: for a sum over two, XLA for CPU
  makes a transposed copy of a factor, and with it computes anew whatever the factor is
  made of, one number at a time.
  """
  return x @ w


def _matmul_forward(x, w):
  return x @ w, (x, w)


def _matmul_backward(residuals, d_y):
  x, w = residuals
  d_w = x.reshape(-1, x.shape[-1]).T @ d_y.reshape(-1, d_y.shape[-1])
  return d_y @ w.T, d_w


matmul.defvjp(_matmul_forward, _matmul_backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
  """x / rms(x) * scale over the last axis, in float32 (arXiv:1910.07467)."""
  y = x.astype(jnp.float32)
  return (y * _inverse_rms(y, eps) * scale.astype(jnp.float32)).astype(x.dtype)


def _inverse_rms(x, eps):
  return jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


def _norm_forward(x, scale, eps):
  return rms_norm(x, scale, eps), (x, scale)


def _norm_backward(eps, residuals, d_y):
  x, scale = residuals
  y, d_y = x.astype(jnp.float32), d_y.astype(jnp.float32)
  r = _inverse_rms(y, eps)
  scaled = d_y * scale.astype(jnp.float32)
  d_x = r * (scaled - y * (r * r * jnp.mean(scaled * y, axis=-1, keepdims=True)))
  # As a product with r: a sum over all but the last axis is slow on a CPU.
  d_scale = jnp.tensordot(r[..., 0], y * d_y, r.ndim - 1)
  return d_x.astype(x.dtype), d_scale.astype(scale.dtype)


rms_norm.defvjp(_norm_forward, _norm_backward)
