"""Paged attention in plain XLA, with a cost proportional to the actual lengths.

The rows are sorted by length and processed in groups of neighbors. A group goes through its
key pages, one page of each row at a time, up to its longest row, and combines them with an
online softmax (arXiv:1805.02867). Every row is a batch dimension of its own in every
operation, so that neither a NaN nor a rounding passes from one row to another: a row's
output is bit for bit the same whichever rows are beside it.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from simpo_jax.arith import ceil_div, round_up
from simpo_jax.kernels.loops import fori_loop
from simpo_jax.kernels.paged_attention.layouts import TOKEN_MAJOR, Layout

STEP_BYTES = 2**22  # keys and values per step, in the pool's dtype
STEP_SCORES = 2**17

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
  layout: Layout = TOKEN_MAJOR,
  step_bytes: int = STEP_BYTES,
) -> Float[Array, "B T H h"]:
  """See `simpo_jax.kernels.paged_attention.paged_prefill`.

  Args:
    layout: of the pool's pages.
    step_bytes: limits the keys and values that a group reads at once.
  """
  B, T, H, h = q.shape
  N, page, lanes = pool.shape
  K, G = lanes // (2 * h), H * 2 * h // lanes
  R = G * T  # matmul rows of a KV head
  fits = min(step_bytes // (page * lanes * pool.dtype.itemsize), STEP_SCORES // (K * R * page))
  size = max(1, min(fits, B))  # rows of a group

  rows = (q * h**-0.5).reshape(B, T, K, G, h).transpose(0, 2, 3, 1, 4).reshape(B, K, R, h)
  query = jnp.arange(T, dtype=jnp.int32)
  position = jnp.where(query < count[:, None], start[:, None] + query, -1)
  position = jnp.tile(position, (1, G))  # [B, R]
  end = jnp.where(count > 0, start + count, 0)
  first = jnp.zeros_like(end)  # the first page that a row sees
  if window is not None:
    first = jnp.where(count > 0, jnp.maximum(start - window + 1, 0) // page, page_ids.shape[1])

  order = jnp.argsort(-end, stable=True)
  order = jnp.pad(order, (0, round_up(B, size) - B), constant_values=B)

  def in_order(x: Array, fill: int) -> Array:
    return x.at[order].get(mode="fill", fill_value=fill)

  rows, position = in_order(rows.astype(pool.dtype), 0), in_order(position, -1)
  end, first = in_order(end, 0), in_order(first, page_ids.shape[1])
  table = jnp.clip(in_order(page_ids, 0), 0, N - 1)

  def group(index: Array, out: Array) -> Array:
    def of_group(x: Array) -> Array:
      return jax.lax.dynamic_slice_in_dim(x, index * size, size)

    queries, at, ends, pages = (of_group(x) for x in (rows, position, end, table))

    def step(j: Array, sums: Sums) -> Sums:
      peak, total, acc = sums
      ids = jax.lax.dynamic_slice_in_dim(pages, j, 1, axis=1)[:, 0]
      k, v = layout.read(pool, ids, ends - j * page, h)
      key = j * page + jnp.arange(page, dtype=jnp.int32)
      seen = key <= at[:, :, None]
      if window is not None:
        seen &= at[:, :, None] - key < window
      seen = seen[:, None]  # [size, 1, R, page]
      scores = jnp.einsum("ikrh,ikhs->ikrs", queries, k, preferred_element_type=jnp.float32)
      if soft_cap is not None:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
      scores = jnp.where(seen, scores, -1e30)
      new_peak = jnp.maximum(peak, jnp.max(scores, axis=-1))
      weights = jnp.where(seen, jnp.exp(scores - new_peak[..., None]), 0.0)
      shrink = jnp.exp(peak - new_peak)
      part = jnp.einsum(
        "ikrs,iksh->ikrh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32
      )
      total = total * shrink + jnp.sum(weights, axis=-1)
      return new_peak, total, acc * shrink[..., None] + part

    init = (
      jnp.full((size, K, R), -1e30, jnp.float32),
      jnp.zeros((size, K, R), jnp.float32),
      jnp.zeros((size, K, R, h), jnp.float32),
    )
    # A step past a row's own pages changes none of its bits: its weights there are exactly 0.
    _, total, acc = fori_loop(jnp.min(of_group(first)), ceil_div(jnp.max(ends), page), step, init)
    done = (acc / jnp.maximum(total, 1e-30)[..., None]).astype(q.dtype)
    return jax.lax.dynamic_update_slice_in_dim(out, done, index * size, axis=0)

  out = fori_loop(0, ceil_div(jnp.sum(end > 0), size), group, jnp.zeros(rows.shape, q.dtype))
  place = jnp.zeros_like(count).at[order].set(jnp.arange(len(order), dtype=jnp.int32), mode="drop")
  out = out[place].reshape(B, K, G, T, h).transpose(0, 3, 1, 2, 4)
  return out.reshape(B, T, H, h)
