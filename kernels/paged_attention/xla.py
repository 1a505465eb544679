"""Paged attention in plain XLA whose cost follows the actual lengths.

Sequences are taken in groups; each group walks its pages once, with a running
softmax (arXiv:1805.02867), up to the longest sequence of the group.
"""

import jax
import jax.numpy as jnp

BLOCK = 64  # keys of a sequence per step, or one page if that is more
GROUP_KEYS = 1024  # keys of a group per step: enough to fill a core, few enough for its cache


def attend(
  q: jax.Array,
  pool: jax.Array,
  page_ids: jax.Array,
  start: jax.Array,
  count: jax.Array,
  *,
  window: int | None = None,
  soft_cap: float | None = None,
) -> jax.Array:
  """See `simpo_jax.kernels.paged_attention.paged_prefill`."""
  B, page = q.shape[0], pool.shape[1]
  pages = max(1, BLOCK // page)  # per step
  group = min(B, max(1, GROUP_KEYS // (pages * page)))
  page_ids = jnp.pad(page_ids, ((0, 0), (0, -page_ids.shape[1] % pages)))

  def split(x):
    x = jnp.pad(x, ((0, -B % group),) + ((0, 0),) * (x.ndim - 1))
    return x.reshape(-1, group, *x.shape[1:])

  out = jax.lax.map(
    lambda rows: _walk(pool, *rows, pages, window, soft_cap),
    (*map(split, (q, page_ids, start, count)),),
  )
  return out.reshape(-1, *q.shape[1:])[:B]


def _walk(pool, q, page_ids, start, count, pages, window, soft_cap):
  B, T, H, h = q.shape  # B sequences of one group
  K, G = pool.shape[2] // (2 * h), H * 2 * h // pool.shape[2]
  block = pages * pool.shape[1]
  grouped = (q * h**-0.5).reshape(B, T, K, G, h)
  query = jnp.arange(T, dtype=jnp.int32)
  position = jnp.where(query < count[:, None], start[:, None] + query, -1)  # [B, T]
  end = jnp.where(count > 0, start + count, 0)

  def step(i, carry):
    peak, total, acc = carry
    ids = jax.lax.dynamic_slice_in_dim(page_ids, i * pages, pages, 1)
    kv = jnp.take(pool, ids, axis=0, mode="clip").reshape(B, block, K, 2, h)
    key = i * block + jnp.arange(block, dtype=jnp.int32)
    seen = key <= position[..., None]  # [B, T, block]
    if window is not None:
      seen &= position[..., None] - key < window
    # An unwritten slot of the pool may hold NaN, and 0 * NaN must not leak.
    v = jnp.where((key < end[:, None])[:, :, None, None], kv[:, :, :, 1], 0)
    scores = jnp.einsum(
      "btkgh,bskh->bkgts", grouped, kv[:, :, :, 0], preferred_element_type=jnp.float32
    )
    if soft_cap is not None:
      scores = soft_cap * jnp.tanh(scores / soft_cap)
    mask = seen[:, None, None]
    scores = jnp.where(mask, scores, -1e30)
    new_peak = jnp.maximum(peak, jnp.max(scores, axis=-1))
    weights = jnp.where(mask, jnp.exp(scores - new_peak[..., None]), 0.0)
    shrink = jnp.exp(peak - new_peak)
    part = jnp.einsum(
      "bkgts,bskh->bkgth", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    return new_peak, total * shrink + jnp.sum(weights, axis=-1), acc * shrink[..., None] + part

  first = jnp.zeros((), jnp.int32)
  if window is not None:
    oldest = jnp.where(count > 0, jnp.maximum(start - window + 1, 0), jnp.max(end))
    first = jnp.min(oldest) // block
  shape = (B, K, G, T)
  init = (
    jnp.full(shape, -1e30, jnp.float32),
    jnp.zeros(shape, jnp.float32),
    jnp.zeros((*shape, h), jnp.float32),
  )
  _, total, acc = jax.lax.fori_loop(first, -(-jnp.max(end) // block), step, init)
  out = acc / jnp.maximum(total, 1e-30)[..., None]  # [B, K, G, T, h]
  return out.transpose(0, 3, 1, 2, 4).reshape(B, T, H, h).astype(q.dtype)
