"""Paged attention in plain XLA whose cost follows the actual lengths.

Sequences are taken in groups; each group walks its pages once, with a running
softmax (arXiv:1805.02867), up to the longest sequence of the group.
"""

import jax
import jax.numpy as jnp

GROUP = 8  # sequences per walk: few enough to follow lengths, enough to fill a core


def paged_attention(
  q: jax.Array, pool: jax.Array, page_ids: jax.Array, lengths: jax.Array, window: int | None = None
) -> jax.Array:
  """See `simpo_jax.kernels.paged_attention.paged_attention`."""
  B = q.shape[0]
  padding = -B % GROUP

  def split(x):
    x = jnp.pad(x, ((0, padding),) + ((0, 0),) * (x.ndim - 1))
    return x.reshape(-1, GROUP, *x.shape[1:])

  out = jax.lax.map(
    lambda args: _walk(pool, *args, window), (split(q), split(page_ids), split(lengths))
  )
  return out.reshape(-1, *q.shape[1:])[:B]


def _walk(pool, q, page_ids, lengths, window):
  G, H, h = q.shape
  page, K = pool.shape[1], pool.shape[2] // 2
  grouped = (q * h**-0.5).reshape(G, K, H // K, h)

  def block(i, carry):
    peak, total, acc = carry
    ids = jax.lax.dynamic_index_in_dim(page_ids, i, 1, keepdims=False)
    kv = jnp.take(pool, ids, axis=0, mode="clip").reshape(G, page, K, 2, h)
    index = i * page + jnp.arange(page, dtype=jnp.int32)
    seen = index < lengths[:, None]  # [G, page]
    if window is not None:
      seen &= lengths[:, None] - 1 - index < window
    k = kv[:, :, :, 0]
    # An unwritten slot of the pool may hold NaN, and 0 * NaN must not leak.
    v = jnp.where(seen[:, :, None, None], kv[:, :, :, 1], 0)
    scores = jnp.einsum("bkgh,bskh->bkgs", grouped, k, preferred_element_type=jnp.float32)
    mask = seen[:, None, None]
    scores = jnp.where(mask, scores, -1e30)
    new_peak = jnp.maximum(peak, jnp.max(scores, axis=-1))
    weights = jnp.where(mask, jnp.exp(scores - new_peak[..., None]), 0.0)
    shrink = jnp.exp(peak - new_peak)
    part = jnp.einsum(
      "bkgs,bskh->bkgh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return (new_peak, total * shrink + jnp.sum(weights, axis=-1), acc * shrink[..., None] + part)

  first = jnp.zeros((), jnp.int32)
  if window is not None:
    first = jnp.min(jnp.maximum(lengths - window, 0)) // page
  shape = (G, K, H // K)
  init = (
    jnp.full(shape, -1e30, jnp.float32),
    jnp.zeros(shape, jnp.float32),
    jnp.zeros((*shape, h), jnp.float32),
  )
  _, total, acc = jax.lax.fori_loop(first, -(-jnp.max(lengths) // page), block, init)
  return (acc / jnp.maximum(total, 1e-30)[..., None]).reshape(G, H, h).astype(q.dtype)
