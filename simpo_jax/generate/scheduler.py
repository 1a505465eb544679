"""Scheduling of requests to slots: a queue on the device, as pure functions.

Requests are admitted first come, first served. Admission reserves the pages of a
request's worst case (prompt and full token budget), so a running sequence never runs out
of pages and is never preempted. If another slot has already cached the same prompt, the
request shares that prompt's full pages.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from simpo_jax.arith import ceil_div
from simpo_jax.generate import kv_pages
from simpo_jax.generate.kv_pages import Pages


class Queue(NamedTuple):
  """Scheduler state. The N requests are numbered from 0 in queue order; N means no request."""

  pages: Pages
  next: Int32[Array, ""]  # the first request not yet admitted
  request: Int32[Array, " slots"]  # the request of each slot, N if it is free
  running: Bool[
    Array, " slots"
  ]  # False for a finished slot; its `request` stays set until `retire`


class Work(NamedTuple):
  """Sizes of all requests; unused entries have length 0 and come last."""

  length: Int32[Array, " N"]  # prompt tokens
  budget: Int32[Array, " N"]  # tokens it may generate
  prompt: Int32[Array, " N"]  # requests with the same number have the same prompt


class Admitted(NamedTuple):
  """The result of an admission."""

  new: Bool[Array, " slots"]  # slots that got a request
  donor: Int32[Array, " slots"]  # the slot with the same prompt cached; the slot itself if none


def init_queue(requests: int, num_pages: int, slots: int, pages_per_seq: int) -> Queue:
  """Returns the initial queue: every slot free, every request waiting."""
  return Queue(
    pages=kv_pages.init_pages(num_pages, slots, pages_per_seq),
    next=jnp.zeros((), jnp.int32),
    request=jnp.full((slots,), requests, jnp.int32),
    running=jnp.zeros((slots,), bool),
  )


def pending(queue: Queue, work: Work) -> Int32[Array, ""]:
  """Returns the number of requests that have not been admitted."""
  return jnp.sum(work.length > 0, dtype=jnp.int32) - queue.next


def wants_refill(queue: Queue, work: Work, rows: int) -> Bool[Array, ""]:
  """Whether to admit requests now.

  True if requests are waiting and either nothing runs, or enough sequences have finished:
  the `rows` of a prefill pass or an eighth of the occupied slots, whichever is less.
  """
  running = jnp.sum(queue.running, dtype=jnp.int32)
  finished = jnp.sum(queue.request < work.length.shape[0], dtype=jnp.int32) - running
  enough = jnp.minimum(rows, ceil_div(running + finished, 8))
  return (pending(queue, work) > 0) & ((running == 0) | (finished >= enough))


def retire(queue: Queue, work: Work) -> Queue:
  """Frees the slots of finished sequences and releases their pages."""
  done = (queue.request < work.length.shape[0]) & ~queue.running
  return queue._replace(
    pages=kv_pages.release(queue.pages, done),
    request=jnp.where(done, work.length.shape[0], queue.request),
  )


def admit(queue: Queue, work: Work, page_size: int) -> tuple[Queue, Admitted]:
  """Assigns the next requests to free slots, as many as slots and pages allow.

  Only a prompt's full pages are shared. Each slot has a private copy of the last, partly
  filled page, which its answer continues to fill (see `tail_copies`).
  """
  slots, N = queue.request.shape[0], work.length.shape[0]
  free = queue.request == N
  rank = jnp.cumsum(free, dtype=jnp.int32) - 1
  request = jnp.where(free, queue.next + rank, queue.request)
  length, budget = (x.at[request].get(mode="fill", fill_value=0) for x in work[:2])
  prompt = work.prompt.at[request].get(mode="fill", fill_value=-1)
  candidate = free & (length > 0)
  # The donor is an occupied slot with the same prompt, else the lowest-ranked candidate with it.
  # Candidates are admitted in rank order, so the donor is admitted if this slot is.
  order = jnp.where(free, rank, -1)
  earlier = (prompt == prompt[:, None]) & (order < order[:, None]) & (length > 0)  # [slot, donor]
  earlier &= candidate[:, None]
  itself = jnp.arange(slots, dtype=jnp.int32)
  earliest = jnp.argmin(jnp.where(earlier, order, slots), axis=1).astype(jnp.int32)
  donor = jnp.where(jnp.any(earlier, axis=1), earliest, itself)
  shared = jnp.where(donor == itself, 0, (length - 1) // page_size)
  need = kv_pages.pages_needed(length + budget - 1, page_size) - shared
  need = jnp.where(candidate, need, 0)
  new = candidate & (jnp.cumsum(need) <= kv_pages.num_free(queue.pages))
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
  """Returns the page copies for newly admitted slots: the partly filled last prompt page.

  Args:
    queue, admitted: the results of `admit`.

  Returns:
    Source and target page of each slot, for `kv_pages.copy_pages`. The target is the number
    of pages, which is out of range, where there is nothing to copy.
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
