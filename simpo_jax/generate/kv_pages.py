"""The paged KV cache (PagedAttention, arXiv:2309.06180): allocation of pages on the device.

The pool is `[L * P, page, 2 * K * h]`. (The last axis is flat, because `[..., 2 * K, h]` is
padded to 128 lanes per head on a TPU: 2 to 2.7 times the memory at head dim 64.) A layer is
selected by offsetting page ids. The kernels write and read what is in a page.

A page is free when no slot holds it; samples of one prompt share its full pages.
All functions are pure and vectorized over slots and pages.
"""

from typing import NamedTuple, TypeVar

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from simpo_jax.arith import ceil_div
from simpo_jax.kernels.loops import fori_loop
from simpo_jax.kernels.paged_attention.layouts import KVPool

Tokens = TypeVar("Tokens", int, Array)


class Pages(NamedTuple):
  """Page table and reference counts of P pages, numbered 0 .. P-1; P means no page."""

  refs: Int32[Array, " P"]  # how many slots hold the page; 0 is free
  table: Int32[Array, "slots pages_per_seq"]  # a slot's pages in order, then P


def pages_needed(tokens: Tokens, page_size: int) -> Tokens:
  """Returns the number of pages that hold `tokens` tokens."""
  return ceil_div(tokens, page_size)


def init_pages(num_pages: int, slots: int, pages_per_seq: int) -> Pages:
  """Returns the initial state: all pages free, no slot holding any."""
  return Pages(
    refs=jnp.zeros((num_pages,), jnp.int32),
    table=jnp.full((slots, pages_per_seq), num_pages, jnp.int32),
  )


def num_free(pages: Pages) -> Int32[Array, ""]:
  """Returns the number of free pages."""
  return jnp.sum(pages.refs == 0, dtype=jnp.int32)


def allocate(pages: Pages, skip: Int32[Array, " slots"], need: Int32[Array, " slots"]) -> Pages:
  """Allocates `need[i]` free pages to slot i, in table columns `skip[i]` and following.

  Args:
    pages: these columns must be empty (see `release`).
    skip: number of leading columns left for pages shared with another slot.
    need: number of pages; 0 leaves a slot unchanged. `sum(need) <= num_free` must hold:
      admission reserves the worst case, so a running sequence never runs out of pages.
  """
  P = pages.refs.shape[0]
  free = jnp.argsort(pages.refs > 0, stable=True)  # the free pages come first
  column = jnp.arange(pages.table.shape[1], dtype=jnp.int32) - skip[:, None]
  granted = (column >= 0) & (column < need[:, None])
  rank = (jnp.cumsum(need) - need)[:, None] + column
  taken = free.at[jnp.where(granted, rank, P)].get(mode="fill", fill_value=P).astype(jnp.int32)
  return Pages(
    refs=pages.refs.at[taken].add(1, mode="drop"),
    table=jnp.where(granted, taken, pages.table),
  )


def share(pages: Pages, donor: Int32[Array, " slots"], count: Int32[Array, " slots"]) -> Pages:
  """Shares the first `count[i]` pages of slot `donor[i]` with slot i."""
  P = pages.refs.shape[0]
  column = jnp.arange(pages.table.shape[1], dtype=jnp.int32)
  shared = jnp.where(column < count[:, None], pages.table[donor], P)
  return Pages(
    refs=pages.refs.at[shared].add(1, mode="drop"),
    table=jnp.where(shared < P, shared, pages.table),
  )


def release(pages: Pages, slots: Bool[Array, " slots"]) -> Pages:
  """Releases all pages of the marked slots."""
  P = pages.refs.shape[0]
  held = jnp.where(slots[:, None], pages.table, P)
  return Pages(
    refs=pages.refs.at[held].add(-1, mode="drop"),
    table=jnp.where(slots[:, None], P, pages.table),
  )


def layer_pages(
  page_ids: Int32[Array, "..."], layer: int | Int32[Array, ""], num_pages: int, layers: int
) -> Int32[Array, "..."]:
  """Offsets page ids into one layer of the pool; P (no page) becomes L * P, out of range."""
  return jnp.where(page_ids < num_pages, page_ids + layer * num_pages, layers * num_pages)


def copy_pages(
  pool: KVPool,
  source: Int32[Array, " copies"],
  target: Int32[Array, " copies"],
  layers: int | Int32[Array, ""],
  num_pages: int,
) -> KVPool:
  """Copies page `source[i]` to page `target[i]` in the first `layers` layers.

  Nothing is copied where the target is P. `layers` may be a traced 0, to copy nothing at all.
  """

  def layer(index: Int32[Array, ""], pool: KVPool) -> KVPool:
    ids = layer_pages(target, index, num_pages, pool.shape[0] // num_pages)
    return pool.at[ids].set(pool.at[source + index * num_pages].get(mode="clip"), mode="drop")

  return fori_loop(0, layers, layer, pool)
