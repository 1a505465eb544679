"""Paged attention in plain XLA, with a cost proportional to the actual lengths.

The key blocks of all sequences form one list, ordered by sequence, and each iteration
of a loop processes the next `I` blocks, whichever sequences they belong to, so that no
sequence waits for a longer one. Partial results are combined per sequence with an
online softmax (arXiv:1805.02867).
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Float32, Int32

from simpo_jax.arith import ceil_div
from simpo_jax.kernels.loops import fori_loop

BLOCK = 64  # keys per block; one page if that is larger
STEP_KEYS = 2048  # keys per step: enough to keep a core busy, few enough for its cache
STEP_SCORES = 2**20  # maximum scores per step

Sums = tuple[Array, Array, Array]  # of each row: maximum score, sum of weights, weighted sum of V


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
  page, lanes = pool.shape[1:]
  K, G = lanes // (2 * h), H * 2 * h // lanes
  R = G * T  # matmul rows of a KV head
  pages = max(1, BLOCK // page)  # pages per block
  block = pages * page
  I = max(1, min(STEP_KEYS // block, STEP_SCORES // (K * R * block)))  # blocks per step
  page_ids = jnp.pad(page_ids, ((0, 0), (0, -page_ids.shape[1] % pages)))
  page_ids = page_ids.reshape(B, -1, pages)

  rows = (q * h**-0.5).reshape(B, T, K, G, h).transpose(0, 2, 3, 1, 4).reshape(B, K, R, h)
  query = jnp.arange(T, dtype=jnp.int32)
  position = jnp.where(query < count[:, None], start[:, None] + query, -1)
  position = jnp.tile(position, (1, G))  # [B, R]
  end = jnp.where(count > 0, start + count, 0)
  first = 0 if window is None else jnp.maximum(start - window + 1, 0) // block
  blocks = jnp.maximum(ceil_div(end, block) - first, 0)  # [B]
  behind = jnp.cumsum(blocks)  # where each sequence's blocks end in the list

  def step(i: Array, sums: Sums) -> Sums:
    peak, total, acc = sums
    place = i * I + jnp.arange(I, dtype=jnp.int32)
    owner = jnp.sum(place[:, None] >= behind, axis=1, dtype=jnp.int32)  # B past the last
    owns = owner[:, None] == jnp.arange(B)  # [I, B]
    b = jnp.minimum(owner, B - 1)
    number = place - (behind - blocks - first)[b]  # index of the block in its sequence
    ids = page_ids.at[owner, number].get(mode="fill", fill_value=0)
    kv = jnp.take(pool, ids, axis=0, mode="clip").reshape(I, block, K, 2, h)
    key = number[:, None] * block + jnp.arange(block, dtype=jnp.int32)  # [I, block]
    seen = (owner < B)[:, None, None] & (key[:, None] <= position[b][..., None])
    if window is not None:
      seen &= position[b][..., None] - key[:, None] < window
    seen = seen[:, None]  # [I, 1, R, block]
    # Unwritten tokens of a page may be NaN, and 0 * NaN is NaN.
    v = jnp.where((key < end[b][:, None])[:, :, None, None], kv[:, :, :, 1], 0)
    scores = jnp.einsum(
      "ikrh,iskh->ikrs", rows[b], kv[:, :, :, 0], preferred_element_type=jnp.float32
    )
    if soft_cap is not None:
      scores = soft_cap * jnp.tanh(scores / soft_cap)
    scores = jnp.where(seen, scores, -1e30)
    best = jnp.where(owns[:, :, None, None], jnp.max(scores, axis=-1)[:, None], -1e30)
    new_peak = jnp.maximum(peak, jnp.max(best, axis=0))  # [B, K, R]
    weights = jnp.where(seen, jnp.exp(scores - new_peak[b][..., None]), 0.0)
    part = jnp.einsum(
      "ikrs,iskh->ikrh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
    )
    shrink = jnp.exp(peak - new_peak)
    # A matmul with `owns` sums the parts of each sequence faster than a scatter.
    total = total * shrink + _sum_by_owner(owns, jnp.sum(weights, axis=-1))
    acc = acc * shrink[..., None] + _sum_by_owner(owns, part)
    return new_peak, total, acc

  init = (
    jnp.full((B, K, R), -1e30, jnp.float32),
    jnp.zeros((B, K, R), jnp.float32),
    jnp.zeros((B, K, R, h), jnp.float32),
  )
  _, total, acc = fori_loop(0, ceil_div(behind[-1], I), step, init)
  out = acc / jnp.maximum(total, 1e-30)[..., None]
  out = out.reshape(B, K, G, T, h).transpose(0, 3, 1, 2, 4)
  return out.reshape(B, T, H, h).astype(q.dtype)


def _sum_by_owner(
  owns: Bool[Array, "I B"], parts: Float32[Array, " I *part"]
) -> Float32[Array, " B *part"]:
  """Sums the parts of each sequence's blocks."""
  flat = parts.reshape(parts.shape[0], -1)
  sums = jnp.matmul(owns.T.astype(flat.dtype), flat, precision="highest")
  return sums.reshape(-1, *parts.shape[1:])
