"""Dense paged attention that gathers every page; the oracle in tests of the others."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32


def attend(
  q: Float[Array, "B T H h"],
  pool: Float[Array, "pages page lanes"],
  page_ids: Int32[Array, "B pages_per_seq"],
  start: Int32[Array, " B"],
  count: Int32[Array, " B"],
  *,
  window: int | None = None,
  soft_cap: float | None = None,
) -> Float[Array, "B T H h"]:
  """See `simpo_jax.kernels.paged_attention.paged_prefill`."""
  B, T, H, h = q.shape
  K = pool.shape[2] // (2 * h)
  kv = jnp.take(pool, page_ids, axis=0, mode="clip")  # [B, n, page, 2Kh]
  kv = kv.reshape(B, -1, K, 2, h).astype(jnp.float32)  # S = n * page
  query = jnp.arange(T, dtype=jnp.int32)
  position = jnp.where(query < count[:, None], start[:, None] + query, -1)[..., None]  # [B, T, 1]
  key = jnp.arange(kv.shape[1], dtype=jnp.int32)
  seen = key <= position  # [B, T, S]
  if window is not None:
    seen &= position - key < window
  # Unseen keys and values may be NaN, and 0 * NaN is NaN.
  used = jnp.any(seen, axis=1)[:, :, None, None]
  k, v = (jnp.where(used, kv[:, :, :, i], 0.0) for i in (0, 1))
  grouped = (q.astype(jnp.float32) * h**-0.5).reshape(B, T, K, H // K, h)
  scores = jnp.einsum("btkgh,bskh->bkgts", grouped, k, precision="highest")
  if soft_cap is not None:
    scores = soft_cap * jnp.tanh(scores / soft_cap)
  mask = seen[:, None, None]
  scores = jnp.where(mask, scores, -jnp.inf)
  peak = jnp.max(scores, axis=-1, keepdims=True, initial=-1e30)
  weights = jnp.where(mask, jnp.exp(scores - peak), 0.0)
  weights /= jnp.maximum(jnp.sum(weights, axis=-1, keepdims=True), 1e-30)
  out = jnp.einsum("bkgts,bskh->btkgh", weights, v, precision="highest")
  return out.reshape(B, T, H, h).astype(q.dtype)
