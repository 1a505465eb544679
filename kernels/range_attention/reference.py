"""Dense range attention with all `[S, S]` scores, for tests of the other implementations."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32


def attend(
  q: Float[Array, "B S H h"],
  k: Float[Array, "B S K h"],
  v: Float[Array, "B S K h"],
  k_start: Int32[Array, "B S"],
  k_end: Int32[Array, "B S"],
  positions: Int32[Array, "B S"],
  *,
  window: int | Int32[Array, ""] | None = None,
  soft_cap: float | None = None,
) -> Float[Array, "B S H h"]:
  """See `simpo_jax.kernels.range_attention.range_attention`."""
  H, h = q.shape[2:]
  seen = dense_mask(k_start, k_end, positions, window)
  k, v = (jnp.repeat(x, H // x.shape[2], axis=2).astype(jnp.float32) for x in (k, v))
  scaled = q.astype(jnp.float32) * h**-0.5
  scores = jnp.einsum("bthx,bshx->bhts", scaled, k, precision="highest")
  if soft_cap is not None:
    scores = soft_cap * jnp.tanh(scores / soft_cap)
  weights = jax.nn.softmax(jnp.where(seen[:, None], scores, -jnp.inf), axis=-1)
  return jnp.einsum("bhts,bshx->bthx", weights, v, precision="highest").astype(q.dtype)


def dense_mask(
  k_start: Int32[Array, "B S"],
  k_end: Int32[Array, "B S"],
  positions: Int32[Array, "B S"],
  window: int | Int32[Array, ""] | None,
) -> Bool[Array, "B S S"]:
  """Returns which keys (last axis) each query (middle axis) sees."""
  key = jnp.arange(k_start.shape[1], dtype=jnp.int32)
  seen = (key >= k_start[..., None]) & (key < k_end[..., None])
  if window is not None:
    seen &= positions[..., None] - positions[:, None] < window
  return seen
