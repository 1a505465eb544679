"""Which request runs in which slot: a queue on the device, all pure functions.

Requests are admitted first come, first served. Admission reserves the pages of a
request's worst case (prompt and whole budget), so no sequence can run out of them
later and nothing is ever preempted. A request whose prompt another slot has already
cached takes that prompt's full pages from it.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from simpo_jax.generate import kv_pages
from simpo_jax.generate.kv_pages import Pages


class Queue(NamedTuple):
  """Scheduler state. The N requests are numbered from 0 in queue order; N means no request."""

  pages: Pages
  next: Int32[Array, ""]  # the first request not yet admitted
  request: Int32[Array, " slots"]  # the request of each slot, N if it is free
  running: Bool[Array, " slots"]  # a slot that has finished keeps its request until `retire`


class Work(NamedTuple):
  """What all requests need; unused entries have length 0 and come last."""

  length: Int32[Array, " N"]  # prompt tokens
  budget: Int32[Array, " N"]  # tokens it may generate
  prompt: Int32[Array, " N"]  # requests with the same number have the same prompt


class Admitted(NamedTuple):
  """The slots that got a request."""

  new: Bool[Array, " slots"]
  donor: Int32[Array, " slots"]  # the slot that has the same prompt cached; itself if none


def init_queue(requests: int, num_pages: int, slots: int, pages_per_seq: int) -> Queue:
  """Every slot free, every request waiting."""
  return Queue(
    pages=kv_pages.init_pages(num_pages, slots, pages_per_seq),
    next=jnp.zeros((), jnp.int32),
    request=jnp.full((slots,), requests, jnp.int32),
    running=jnp.zeros((slots,), bool),
  )


def pending(queue: Queue, work: Work) -> Int32[Array, ""]:
  """How many requests have not been admitted."""
  return jnp.sum(work.length > 0, dtype=jnp.int32) - queue.next


def wants_refill(queue: Queue, work: Work, rows: int) -> Bool[Array, ""]:
  """Whether it is time to admit.

  Never unless requests wait. Then it is when nothing runs, or when as many sequences have
  finished as a prefill pass has `rows`, or an eighth of those that were running, whichever
  is less.
  """
  running = jnp.sum(queue.running, dtype=jnp.int32)
  finished = jnp.sum(queue.request < work.length.shape[0], dtype=jnp.int32) - running
  enough = jnp.minimum(rows, -(-(running + finished) // 8))
  return (pending(queue, work) > 0) & ((running == 0) | (finished >= enough))


def retire(queue: Queue, work: Work) -> Queue:
  """Frees the slots of finished sequences and lets go of their pages."""
  done = (queue.request < work.length.shape[0]) & ~queue.running
  return queue._replace(
    pages=kv_pages.release(queue.pages, done),
    request=jnp.where(done, work.length.shape[0], queue.request),
  )


def admit(queue: Queue, work: Work, page_size: int) -> tuple[Queue, Admitted]:
  """Puts the next requests into the free slots, as many as slots and pages allow.

  Only the prompt's full pages are shared: the last one, which the answer goes on to
  fill, is the slot's own (see `tail_copies`).
  """
  slots, N = queue.request.shape[0], work.length.shape[0]
  free = queue.request == N
  rank = jnp.cumsum(free, dtype=jnp.int32) - 1
  request = jnp.where(free, queue.next + rank, queue.request)
  length, budget = (x.at[request].get(mode="fill", fill_value=0) for x in work[:2])
  prompt = work.prompt.at[request].get(mode="fill", fill_value=-1)
  wanted = free & (length > 0)
  # The donor is the earliest slot with the same prompt: one already occupied, or the lowest
  # rank among those considered now, which is admitted whenever a slot that shares it is.
  order = jnp.where(free, rank, -1)
  older = (prompt == prompt[:, None]) & (order < order[:, None]) & (length > 0)
  older &= wanted[:, None]
  itself = jnp.arange(slots, dtype=jnp.int32)
  first = jnp.argmin(jnp.where(older, order, slots), axis=1).astype(jnp.int32)
  donor = jnp.where(jnp.any(older, axis=1), first, itself)
  shared = jnp.where(donor == itself, 0, (length - 1) // page_size)
  need = kv_pages.pages_needed(length + budget - 1, page_size) - shared
  need = jnp.where(wanted, need, 0)
  new = wanted & (jnp.cumsum(need) <= kv_pages.num_free(queue.pages))
  pages = kv_pages.allocate(queue.pages, jnp.where(new, shared, 0), jnp.where(new, need, 0))
  pages = kv_pages.share(pages, donor, jnp.where(new, shared, 0))
  queue = Queue(
    pages=pages,
    next=queue.next + jnp.sum(new, dtype=jnp.int32),
    request=jnp.where(new, request, queue.request),
    running=queue.running | new,
  )
  return queue, Admitted(new, jnp.where(new, donor, itself))


def tail_copies(
  queue: Queue, work: Work, admitted: Admitted, page_size: int
) -> tuple[Int32[Array, " slots"], Int32[Array, " slots"]]:
  """Pages to copy to each slot: the partly filled last page of a prompt cached elsewhere.

  Args:
    queue, admitted: as `admit` returns them.

  Returns:
    Source and target, for `kv_pages.copy_pages`. The target is P where there is nothing
    to copy.
  """
  P = queue.pages.refs.shape[0]
  cached = work.length.at[queue.request].get(mode="fill", fill_value=1) - 1
  shares = admitted.donor != jnp.arange(queue.request.shape[0])
  column = (cached // page_size)[:, None]
  column = jnp.minimum(column, queue.pages.table.shape[1] - 1)
  target = jnp.take_along_axis(queue.pages.table, column, axis=1)[:, 0]
  source = jnp.take_along_axis(queue.pages.table[admitted.donor], column, axis=1)[:, 0]
  copied = admitted.new & shares & (cached % page_size > 0)
  return jnp.where(copied, source, 0), jnp.where(copied, target, P)
