"""Dense paged attention: gathers every page. The oracle of the other implementations."""

import jax
import jax.numpy as jnp


def attend(
  q: jax.Array,
  pool: jax.Array,
  page_ids: jax.Array,
  positions: jax.Array,
  window: int | None = None,
) -> jax.Array:
  """Query t of row b sees the tokens `s <= positions[b, t]` of its sequence.

  Args:
    q: `[B, T, H, h]`.
    pool: `[L * P, page, 2K, h]`.
    page_ids: int32 `[B, n]`.
    positions: int32 `[B, T]`; -1 makes a row of zeros.
    window: only `positions[b, t] - s < window` is seen.

  Returns:
    `[B, T, H, h]` in q's dtype.
  """
  B, T, H, h = q.shape
  K = pool.shape[2] // 2
  kv = jnp.take(pool, page_ids, axis=0, mode="clip")  # [B, n, page, 2K, h]
  kv = kv.reshape(B, -1, K, 2, h).astype(jnp.float32)  # S = n * page
  key_positions = jnp.arange(kv.shape[1], dtype=jnp.int32)
  seen = key_positions <= positions[..., None]  # [B, T, S]
  if window is not None:
    seen &= positions[..., None] - key_positions < window
  # What no query may see can be anything, NaN included: 0 * NaN must not leak.
  used = jnp.any(seen, axis=1)[:, :, None, None]
  k, v = (jnp.where(used, kv[:, :, :, i], 0.0) for i in (0, 1))
  grouped = (q.astype(jnp.float32) * h**-0.5).reshape(B, T, K, H // K, h)
  scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k)
  mask = seen[:, None, None]
  scores = jnp.where(mask, scores, -jnp.inf)
  peak = jnp.max(scores, axis=-1, keepdims=True, initial=-1e30)
  weights = jnp.where(mask, jnp.exp(scores - peak), 0.0)
  weights /= jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-30)
  return jnp.einsum("bkgts,bskh->btkgh", weights, v).reshape(B, T, H, h).astype(q.dtype)
