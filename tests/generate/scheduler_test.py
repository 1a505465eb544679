"""The queue on the device: every request runs once, in order, on pages of its own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simpo_jax.generate import scheduler
from simpo_jax.generate.kv_pages import pages_needed
from simpo_jax.generate.scheduler import (
  Work,
  admit,
  init_queue,
  pending,
  retire,
  tail_copies,
  wants_refill,
)
from support.tiers import sweep

PAGE = 4


def _work(lengths, budgets, prompts=None):
  prompts = range(len(lengths)) if prompts is None else prompts
  return Work(*(jnp.asarray(list(x), jnp.int32) for x in (lengths, budgets, prompts)))


def _queue(work, slots, pages):
  longest = pages_needed(int((work.length + work.budget).max()), PAGE)
  return init_queue(len(work.length), pages, slots, longest)


def _running(queue):
  return {
    int(request): row[row < len(queue.pages.refs)].tolist()
    for request, row, runs in zip(
      queue.request, np.asarray(queue.pages.table), queue.running, strict=True
    )
    if runs
  }


def _check_pages(queue, work):
  """Every page is held as often as it is counted; only full prompt pages are shared."""
  P = queue.pages.refs.shape[0]
  table = np.asarray(queue.pages.table)
  counts = np.bincount(table[table < P], minlength=P)
  np.testing.assert_array_equal(queue.pages.refs, counts)
  holders = {}
  for request, pages in _running(queue).items():
    assert len(pages) == pages_needed(int(work.length[request] + work.budget[request]) - 1, PAGE)
    assert len(set(pages)) == len(pages)
    for column, page in enumerate(pages):
      holders.setdefault(page, []).append((request, column))
  for who in holders.values():
    if len(who) > 1:
      [prompt] = {int(work.prompt[r]) for r, _ in who}
      [column] = {c for _, c in who}
      assert (column + 1) * PAGE <= work.length[who[0][0]] - 1, (prompt, column)


def _simulate(work, slots, pages, rows, seed):
  """Runs the queue to its end with random finishing times; returns what was admitted when."""
  rng = np.random.default_rng(seed)
  step_admit = jax.jit(lambda queue: admit(retire(queue, work), work, PAGE))
  wants = jax.jit(lambda queue: wants_refill(queue, work, rows))
  queue, rounds, cached = _queue(work, slots, pages), [], set()
  while int(pending(queue, work)) > 0 or np.any(queue.running):
    if bool(wants(queue)):
      before = set(_running(queue))
      queue, admitted = step_admit(queue)
      new = [int(r) for r in np.asarray(queue.request)[np.asarray(admitted.new)]]
      assert new or before, "stuck: nothing runs and nothing is admitted"
      rounds.append(sorted(new))
      cached = {int(work.prompt[r]) for r in _running(queue)}
      for slot in np.flatnonzero(admitted.new):
        donor = int(admitted.donor[slot])
        assert work.prompt[queue.request[donor]] == work.prompt[queue.request[slot]]
      assert len(cached) == len(
        {int(work.prompt[queue.request[d]]) for d in admitted.donor[queue.running]}
      )
    _check_pages(queue, work)
    queue = queue._replace(running=queue.running & (rng.random(slots) >= 0.3))
  queue = retire(queue, work)
  assert (np.asarray(queue.request) == len(work.length)).all()
  assert not np.asarray(queue.pages.refs).any(), "every page came back"
  return [request for round_ in rounds for request in round_]


@sweep("seed", range(4))
@sweep("slots,rows", ((5, 2), (1, 1), (16, 16)), default=2)
def test_every_request_runs_once_in_order_and_all_pages_come_back(seed, slots, rows):
  rng = np.random.default_rng(seed)
  n = 60
  work = _work(rng.integers(1, 20, n), rng.integers(1, 30, n))
  largest = int(pages_needed(work.length + work.budget - 1, PAGE).max())
  for pages in (largest, largest + 5, 16 * largest):
    assert _simulate(work, slots, pages, rows, seed) == list(range(n))


@sweep("seed", range(4))
@pytest.mark.parametrize("samples", (2, 7))
def test_samples_of_a_prompt_share_its_full_pages(seed, samples):
  rng = np.random.default_rng(seed)
  lengths = np.repeat(rng.integers(1, 20, 12), samples)
  work = _work(lengths, rng.integers(1, 9, 12 * samples), np.repeat(np.arange(12), samples))
  largest = int(pages_needed(work.length + work.budget - 1, PAGE).max())
  for pages in (largest, 4 * largest):
    assert _simulate(work, 6, pages, 2, seed) == list(range(12 * samples))


def test_unused_entries_are_never_admitted():
  work = _work([3, 5, 0, 0], [4, 4, 0, 0])
  queue, admitted = admit(_queue(work, 4, 40), work, PAGE)
  assert np.asarray(admitted.new).tolist() == [True, True, False, False]
  assert int(pending(queue, work)) == 0 and not wants_refill(queue, work, 1)


def test_a_large_request_is_not_overtaken():
  """First come, first served: a small one behind a large one waits with it, or it would
  wait forever."""
  work = _work([1, 20, 1], [4, 4, 4])
  queue, _ = admit(_queue(work, 3, 6), work, PAGE)
  assert set(_running(queue)) == {0}


def test_sharing_makes_room_for_more():
  """12 cached tokens are three full pages: the first holds five pages, each other two."""
  work = _work([13] * 4, [8] * 4, [7] * 4)
  queue, admitted = admit(_queue(work, 4, 5 + 3 * 2), work, PAGE)
  assert np.asarray(admitted.donor).tolist() == [0, 0, 0, 0]
  pages = _running(queue)
  assert len(pages) == 4
  assert [pages[r][:3] for r in range(4)] == [pages[0][:3]] * 4
  own = [p for r in range(4) for p in pages[r][3:]]
  assert len(set(own)) == 8


def test_the_partly_filled_page_of_a_shared_prompt_is_copied():
  work = _work([11, 11, 9, 9], [4] * 4, [0, 0, 1, 1])  # 10 cached tokens, and 8: two full pages
  queue, admitted = admit(_queue(work, 4, 40), work, PAGE)
  source, target = (np.asarray(x) for x in tail_copies(queue, work, admitted, PAGE))
  table = np.asarray(queue.pages.table)
  assert target.tolist() == [40, table[1, 2], 40, 40]
  assert source[1] == table[0, 2]


def test_a_prompt_is_shared_with_a_sample_that_runs_already():
  work = _work([9, 3, 9], [4, 4, 4], [5, 6, 5])
  queue, _ = admit(_queue(work, 2, 40), work, PAGE)
  queue = queue._replace(running=jnp.asarray([True, False]))
  queue, admitted = admit(retire(queue, work), work, PAGE)
  assert np.asarray(queue.request).tolist() == [0, 2]
  assert np.asarray(admitted.donor).tolist() == [0, 0]
  np.testing.assert_array_equal(queue.pages.table[1, :2], queue.pages.table[0, :2])
  # The donor finishes first: its pages stay with who shares them.
  queue = retire(queue._replace(running=jnp.asarray([False, True])), work)
  assert (np.asarray(queue.pages.refs)[queue.pages.table[1, :3]] == 1).all()
  _check_pages(queue, work)


@pytest.mark.parametrize(
  "running,finished,rows,wanted",
  ((4, 0, 4, False), (3, 1, 4, True), (14, 1, 4, False), (14, 2, 4, True), (99, 4, 4, True)),
)
def test_refill_waits_for_a_pass_worth_of_free_slots(running, finished, rows, wanted):
  slots = running + finished
  work = _work([2] * (slots + 1), [2] * (slots + 1))
  queue, _ = admit(_queue(work, slots, 2 * slots), work, PAGE)
  queue = queue._replace(running=jnp.arange(slots) < running)
  assert bool(wants_refill(queue, work, rows)) == wanted
  assert not scheduler.wants_refill(queue._replace(next=jnp.int32(slots + 1)), work, rows)
