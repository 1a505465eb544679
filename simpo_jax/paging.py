"""The paged KV cache: page allocation and writes, all on the device, all pure.

Pages are handed out from a free-list stack; a table says which pages a slot
holds. Everything is vectorised over slots: one cumulative sum, one gather or one
drop-mode scatter per call.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from simpo_jax.arith import ceil_div


class Pages(NamedTuple):
  """Who owns which page. P pages, numbered 0 .. P-1; the number P means none."""

  free: jax.Array  # int32 [P], a stack: the first `num_free` entries are free page ids
  num_free: jax.Array  # int32 []
  table: jax.Array  # int32 [slots, pages_per_seq], P where a slot holds no page


def pages_needed(tokens, page_size: int):
  """Pages that hold `tokens` tokens."""
  return ceil_div(tokens, page_size)


def init_pages(num_pages: int, slots: int, pages_per_seq: int) -> Pages:
  """All pages free, no slot holding any."""
  return Pages(
    free=jnp.arange(num_pages, dtype=jnp.int32)[::-1],
    num_free=jnp.asarray(num_pages, jnp.int32),
    table=jnp.full((slots, pages_per_seq), num_pages, jnp.int32),
  )


def allocate(pages: Pages, need: jax.Array) -> Pages:
  """Gives slot i `need[i]` pages from the top of the stack, in place of what it held.

  Args:
    pages: a slot that gets pages must hold none (see `release`).
    need: int32 `[slots]`, 0 to leave a slot alone. The caller has checked that
      `sum(need) <= num_free`: admission reserves the worst case, so running out
      in the middle of a sequence cannot happen.
  """
  P, width = pages.free.shape[0], pages.table.shape[1]
  column = jnp.arange(width, dtype=jnp.int32)
  rank = (jnp.cumsum(need) - need)[:, None] + column  # [slots, width]
  taken = pages.free.at[pages.num_free - 1 - rank].get(mode="fill", fill_value=P)
  granted = column < need[:, None]
  return Pages(
    free=pages.free,
    num_free=pages.num_free - jnp.sum(need, dtype=jnp.int32),
    table=jnp.where(granted, taken, pages.table),
  )


def release(pages: Pages, slots: jax.Array) -> Pages:
  """Returns the pages of the slots marked in bool `[slots]` to the stack."""
  P = pages.free.shape[0]
  held = (pages.table < P) & slots[:, None]
  flat = held.reshape(-1)
  rank = jnp.cumsum(flat) - 1
  target = jnp.where(flat, pages.num_free + rank, P)
  return Pages(
    free=pages.free.at[target].set(pages.table.reshape(-1), mode="drop"),
    num_free=pages.num_free + jnp.sum(flat, dtype=jnp.int32),
    table=jnp.where(held, P, pages.table),
  )


def layer_pages(page_ids: jax.Array, layer: int, num_pages: int, layers: int) -> jax.Array:
  """Page ids of a slot, offset into one layer of the pool; "none" stays out of range."""
  return jnp.where(page_ids < num_pages, page_ids + layer * num_pages, layers * num_pages)


def write(
  pool: jax.Array, page_ids: jax.Array, positions: jax.Array, k: jax.Array, v: jax.Array
) -> jax.Array:
  """Writes new keys and values into the pool, in place when the pool is a loop carry.

  Args:
    pool: `[L * P, page, 2K, h]`.
    page_ids: int32 `[B, pages_per_seq]`, offset for the layer.
    positions: int32 `[B, T]`, the index of each token in its sequence; -1 writes nothing.
    k, v: `[B, T, K, h]`.
  """
  size = pool.shape[1]
  B, T, K, h = k.shape
  column = jnp.clip(positions // size, 0, page_ids.shape[1] - 1)
  ids = jnp.take_along_axis(page_ids, column, axis=1)
  ids = jnp.where(positions >= 0, ids, pool.shape[0])
  kv = jnp.stack([k, v], axis=3).reshape(B, T, 2 * K, h).astype(pool.dtype)
  return pool.at[ids, jnp.maximum(positions, 0) % size].set(kv, mode="drop")
