"""Matmul and RMS norm with custom gradients, since those of autodiff are slow on CPU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32


def activation_dtype(compute: DTypeLike, platform: str) -> np.dtype:
  """Returns the dtype of what lies between matmuls of operands in `compute`, KV cache included.

  It is float32 on CPU, whose bfloat16 instructions are for products in float32 alone: XLA
  multiplies faster that way, and converts whole arrays to write to bfloat16 ones.
  """
  return np.dtype(np.float32) if platform == "cpu" else jnp.dtype(compute)


def matmul(
  x: Float[Array, "B T inputs"], w: Float[Array, "inputs outputs"]
) -> Float[Array, "B T outputs"]:
  """Returns x @ w in x's dtype, the product of operands in w's dtype.

  The gradient of `w` contracts over a single, flattened token axis. To contract over two
  axes, XLA for CPU transposes an operand, and recomputes the elementwise operations fused
  into it without vectorization.
  """
  return _matmul(x, w)


def _dot(x: Array, w: Array, dtype: DTypeLike) -> Array:
  return jnp.matmul(x, w, preferred_element_type=dtype)


# pyright cannot infer the type of plain `@jax.custom_vjp`.
@functools.partial(jax.custom_vjp, nondiff_argnums=())
def _matmul(x: Array, w: Array) -> Array:
  return _matmul_forward(x, w)[0]


def _matmul_forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
  operand = x.astype(w.dtype)
  return _dot(operand, w, x.dtype), (operand, w)


def _matmul_backward(residuals: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
  x, w = residuals
  dtype, d_y = d_y.dtype, d_y.astype(w.dtype)
  d_w = _dot(x.reshape(-1, x.shape[-1]).T, d_y.reshape(-1, d_y.shape[-1]), dtype)
  return _dot(d_y, w.T, dtype), d_w.astype(w.dtype)


_matmul.defvjp(_matmul_forward, _matmul_backward)


def rms_norm(
  x: Float[Array, "... width"], scale: Float[Array, " width"], eps: float
) -> Float[Array, "... width"]:
  """Returns x / rms(x) * scale over the last axis, computed in float32 (arXiv:1910.07467)."""
  return _rms_norm(x, scale, eps)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rms_norm(x: Array, scale: Array, eps: float) -> Array:
  y = x.astype(jnp.float32)
  return (y * _inverse_rms(y, eps) * scale.astype(jnp.float32)).astype(x.dtype)


def _inverse_rms(x: Float32[Array, "... width"], eps: float) -> Float32[Array, "... 1"]:
  return jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps)


def _norm_forward(x: Array, scale: Array, eps: float) -> tuple[Array, tuple[Array, Array]]:
  return _rms_norm(x, scale, eps), (x, scale)


def _norm_backward(eps: float, residuals: tuple[Array, Array], d_y: Array) -> tuple[Array, Array]:
  x, scale = residuals
  y, d_y = x.astype(jnp.float32), d_y.astype(jnp.float32)
  r = _inverse_rms(y, eps)
  scaled = d_y * scale.astype(jnp.float32)
  d_x = r * (scaled - y * (r * r * jnp.mean(scaled * y, axis=-1, keepdims=True)))
  # A contraction with r, since a sum over all but the last axis is slow on CPU.
  d_scale = jnp.tensordot(r[..., 0], y * d_y, r.ndim - 1)
  return d_x.astype(x.dtype), d_scale.astype(scale.dtype)


_rms_norm.defvjp(_norm_forward, _norm_backward)
