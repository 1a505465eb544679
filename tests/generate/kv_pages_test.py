"""Page allocation: no page is ever lost, shared by accident, or given twice."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simpo_jax.generate import kv_pages
from simpo_jax.kernels import paged_attention


def _check(pages, held):
  """`held[slot]` is the list of pages a slot should hold, in order."""
  total, width = pages.refs.shape[0], pages.table.shape[1]
  counts = np.bincount([p for row in held for p in row], minlength=total)
  rows = [[*row, *[total] * (width - len(row))] for row in held]
  expected = kv_pages.Pages(jnp.asarray(counts, jnp.int32), jnp.asarray(rows, jnp.int32))
  chex.assert_trees_all_equal(pages, expected)
  chex.assert_trees_all_equal_dtypes(pages, expected)
  assert int(kv_pages.num_free(pages)) == (counts == 0).sum()


@pytest.mark.parametrize("seed", range(3))
def test_every_page_is_free_or_held_by_those_who_asked(seed):
  total, slots, width = 23, 5, 7
  rng = np.random.default_rng(seed)
  allocate, release, share = map(jax.jit, (kv_pages.allocate, kv_pages.release, kv_pages.share))
  pages = kv_pages.init_pages(total, slots, width)
  held: list[list[int]] = [[] for _ in range(slots)]
  shares = 0
  for _ in range(60):
    marked = rng.random(slots) < 0.4
    pages = release(pages, jnp.asarray(marked))
    held = [[] if m else h for m, h in zip(marked, held, strict=True)]
    empty = [i for i in range(slots) if not held[i]]
    donors = [i for i in range(slots) if held[i]]
    donor, skip, need = np.arange(slots), np.zeros(slots, int), np.zeros(slots, int)
    for i in empty:
      if donors and rng.random() < 0.5:
        donor[i] = rng.choice(donors)
        skip[i] = rng.integers(1, len(held[donor[i]]) + 1)
        shares += 1
      need[i] = rng.integers(0, width - skip[i] + 1)
    room = total - len({p for row in held for p in row})
    while need.sum() > room:
      need[rng.integers(slots)] = 0
    pages = allocate(pages, jnp.asarray(skip), jnp.asarray(need))
    pages = share(pages, jnp.asarray(donor), jnp.asarray(skip))
    table = np.asarray(pages.table)
    new = [p for i in empty for p in table[i, skip[i] : skip[i] + need[i]].tolist()]
    assert len(set(new)) == len(new) and not {p for row in held for p in row} & set(new)
    own = {i: table[i, skip[i] : skip[i] + need[i]].tolist() for i in empty}
    held = [[*held[donor[i]][: skip[i]], *own[i]] if i in own else held[i] for i in range(slots)]
    _check(pages, held)
  assert shares > 20
  _check(release(pages, jnp.ones(slots, bool)), [[]] * slots)


def test_allocation_keeps_what_other_slots_hold():
  none = jnp.zeros(3, jnp.int32)
  pages = kv_pages.allocate(kv_pages.init_pages(9, 3, 4), none, jnp.asarray([3, 0, 2]))
  before = np.asarray(pages.table)
  pages = kv_pages.allocate(pages, none, jnp.asarray([0, 4, 0]))
  np.testing.assert_array_equal(np.asarray(pages.table)[[0, 2]], before[[0, 2]])
  assert int(kv_pages.num_free(pages)) == 0
  assert sorted(np.asarray(pages.table)[np.asarray(pages.table) < 9]) == list(range(9))


def test_write_puts_keys_and_values_at_page_and_slot():
  size, heads, h, layers, total = 4, 2, 3, 2, 5
  rng = np.random.default_rng(0)
  pool = jnp.full((layers * total, size, 2 * heads * h), np.nan)
  # The third row has no page, and the fourth, dead, has what is another's.
  table = [[3, 1, total], [0, total, total], [total, total, total], [3, 1, total]]
  start, count = (jnp.asarray(x, jnp.int32) for x in ([2, 3, 0, 0], [4, 3, 2, 0]))
  k, v = (rng.normal(size=(4, 4, heads, h)).astype(np.float32) for _ in range(2))
  ids = kv_pages.layer_pages(jnp.asarray(table, jnp.int32), 1, total, layers)
  out = np.asarray(
    paged_attention.write(pool, ids, start, count, jnp.asarray(k), jnp.asarray(v), impl="xla")
  )

  expected = np.full((layers * total, size, heads, 2, h), np.nan, np.float32)
  # Row 1 starts in the last place of its only page: what comes after has no page.
  for row, t, page, slot in ((0, 0, 3, 2), (0, 1, 3, 3), (0, 2, 1, 0), (0, 3, 1, 1), (1, 0, 0, 3)):
    expected[total + page, slot, :, 0] = k[row, t]
    expected[total + page, slot, :, 1] = v[row, t]
  np.testing.assert_array_equal(out, expected.reshape(out.shape))


@pytest.mark.parametrize("layers", (0, 3))
def test_copying_pages_copies_in_every_layer_or_not_at_all(layers):
  total = 4
  pool = np.random.default_rng(0).normal(size=(3 * total, 2, 6)).astype(np.float32)
  source, target = jnp.asarray([1, 0, 3]), jnp.asarray([2, total, 0])
  copy = jax.jit(kv_pages.copy_pages, static_argnums=4)
  out = copy(jnp.asarray(pool), source, target, layers, total)
  expected = pool.copy().reshape(3, total, 2, 6)
  expected[:layers, [2, 0]] = expected[:layers, [1, 3]]
  np.testing.assert_array_equal(out, expected.reshape(pool.shape))
