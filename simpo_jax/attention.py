"""Attention over packed training rows, where each token sees one range of keys."""

import jax
import jax.numpy as jnp

NEGATIVE = -1e30  # a masked score: exp gives exactly 0, and no NaN arises from it


def range_attention(q: jax.Array, k: jax.Array, v: jax.Array, k_start: jax.Array,
                    k_end: jax.Array, positions: jax.Array, window: int | None = None,
                    chunk: int = 256) -> jax.Array:
  """Softmax attention where query t sees the keys `k_start[t] <= s < k_end[t]`.

  That one range per token expresses any packing of `[chosen reversed | prompt |
  rejected]` pairs (see `data/packing.py`). Queries are taken `chunk` at a time and
  recomputed in the backward pass, so no `[S, S]` array outlives its chunk.

  Args:
    q: `[B, S, H, h]`; k, v: `[B, S, K, h]` with H a multiple of K.
    k_start, k_end: int32 `[B, S]`, indices into the row; every range is non-empty.
    positions: int32 `[B, S]`, used by `window` alone.
    window: a query sees keys less than this many positions back (Mistral).
    chunk: queries per block; S must be a multiple of it, or smaller than it.

  Returns:
    `[B, S, H, h]` in q's dtype; scores and softmax are float32.
  """
  B, S, H, h = q.shape
  K = k.shape[2]
  chunk = min(chunk, S)
  if S % chunk:
    raise ValueError(f"row length {S} is not a multiple of the query chunk {chunk}")
  keys = jnp.arange(S, dtype=jnp.int32)

  @jax.checkpoint
  def attend(args):
    q, start, end, pos = args  # [B, C, ...]
    scores = jnp.einsum("bckgh,bskh->bkgcs", q, k, preferred_element_type=jnp.float32)
    seen = (keys >= start[..., None]) & (keys < end[..., None])  # [B, C, S]
    if window is not None:
      seen &= pos[..., None] - positions[:, None, :] < window
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, NEGATIVE), axis=-1)
    return jnp.einsum("bkgcs,bskh->bckgh", weights.astype(v.dtype), v)

  def split(x):  # [B, S, ...] -> [S/C, B, C, ...]
    return jnp.moveaxis(x.reshape(B, S // chunk, chunk, *x.shape[2:]), 1, 0)

  q = (q * h**-0.5).reshape(B, S, K, H // K, h)
  out = jax.lax.map(attend, (split(q), split(k_start), split(k_end), split(positions)))
  return jnp.moveaxis(out, 0, 1).reshape(B, S, H, h)
