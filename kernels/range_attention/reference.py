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
  window: int | None = None,
) -> jax.Array:
  """See `simpo_jax.kernels.range_attention.range_attention`."""
  H, h = q.shape[2:]
  seen = dense_mask(k_start, k_end, positions, window)
  k, v = (jnp.repeat(x, H // x.shape[2], axis=2).astype(jnp.float32) for x in (k, v))
  scores = jnp.einsum("bthx,bshx->bhts", q.astype(jnp.float32), k, precision="highest")
  weights = jax.nn.softmax(jnp.where(seen[:, None], scores * h**-0.5, -jnp.inf), axis=-1)
  return jnp.einsum("bhts,bshx->bthx", weights, v, precision="highest").astype(q.dtype)


def dense_mask(
  k_start: jax.Array, k_end: jax.Array, positions: jax.Array, window: int | None
) -> jax.Array:
  """bool `[B, S, S]`: which keys each query sees."""
  key = jnp.arange(k_start.shape[1], dtype=jnp.int32)
  seen = (key >= k_start[..., None]) & (key < k_end[..., None])
  if window is not None:
    seen &= positions[..., None] - positions[:, None] < window
  return seen
