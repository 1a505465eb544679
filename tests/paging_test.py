"""Page allocation: no page is ever lost, shared by accident, or given twice."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simpo_jax import paging


def _held(pages):
  table = np.asarray(pages.table)
  return table[table < pages.free.shape[0]]


def _free(pages):
  return np.asarray(pages.free)[: int(pages.num_free)]


@pytest.mark.parametrize("seed", range(3))
def test_every_page_is_free_or_held_exactly_once(seed):
  total, slots, width = 23, 5, 7
  rng = np.random.default_rng(seed)
  allocate, release = jax.jit(paging.allocate), jax.jit(paging.release)
  pages = paging.init_pages(total, slots, width)
  held = np.zeros(slots, int)
  for _ in range(40):
    marked = rng.random(slots) < 0.4
    pages, held = release(pages, marked), np.where(marked, 0, held)
    wanted = np.where(held == 0, rng.integers(0, width + 1, slots), 0)
    while wanted.sum() + held.sum() > total:
      wanted[rng.integers(slots)] = 0
    pages, held = allocate(pages, wanted.astype(np.int32)), held + wanted
    assert sorted([*_held(pages), *_free(pages)]) == list(range(total))
    np.testing.assert_array_equal((np.asarray(pages.table) < total).sum(axis=1), held)
    # A slot's pages fill its row from the left.
    for row, n in zip(np.asarray(pages.table), held, strict=True):
      assert (row[:n] < total).all() and (row[n:] == total).all()


def test_allocation_keeps_what_other_slots_hold():
  pages = paging.allocate(paging.init_pages(9, 3, 4), jnp.asarray([3, 0, 2]))
  before = np.asarray(pages.table)
  pages = paging.allocate(pages, jnp.asarray([0, 4, 0]))
  np.testing.assert_array_equal(np.asarray(pages.table)[[0, 2]], before[[0, 2]])
  assert int(pages.num_free) == 0
  chex.assert_trees_all_equal(sorted(_held(pages)), list(range(9)))


def test_write_puts_keys_and_values_at_page_and_slot():
  size, heads, h, layers, total = 4, 2, 3, 2, 5
  rng = np.random.default_rng(0)
  pool = jnp.full((layers * total, size, 2 * heads, h), np.nan)
  table = jnp.asarray([[3, 1, total], [0, total, total]], jnp.int32)
  positions = jnp.asarray([[2, 3, 4, 7], [0, -1, 5, 1]], jnp.int32)  # 5: beyond its one page
  k, v = (rng.normal(size=(2, 4, heads, h)).astype(np.float32) for _ in range(2))
  ids = paging.layer_pages(table, 1, total, layers)
  out = np.asarray(paging.write(pool, ids, positions, k, v))

  expected = np.full(pool.shape, np.nan, np.float32)
  for row, t, page, slot in (
    (0, 0, 3, 2),
    (0, 1, 3, 3),
    (0, 2, 1, 0),
    (0, 3, 1, 3),
    (1, 0, 0, 0),
    (1, 3, 0, 1),
  ):
    expected[total + page, slot, 0::2] = k[row, t]
    expected[total + page, slot, 1::2] = v[row, t]
  np.testing.assert_array_equal(out, expected)
