"""Dense range attention: all `[S, S]` scores at once. The oracle of the other implementations."""

import jax
import jax.numpy as jnp


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  k_start: jax.Array,
  k_end: jax.Array,
  positions: jax.Array,
  *,
  window: int | jax.Array | None = None,
  soft_cap: float | None = None,
) -> jax.Array:
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
  k_start: jax.Array, k_end: jax.Array, positions: jax.Array, window: int | jax.Array | None
) -> jax.Array:
  """bool `[B, S, S]`: which keys each query sees."""
  key = jnp.arange(k_start.shape[1], dtype=jnp.int32)
  seen = (key >= k_start[..., None]) & (key < k_end[..., None])
  if window is not None:
    seen &= positions[..., None] - positions[:, None] < window
  return seen
