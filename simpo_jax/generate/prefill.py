"""Admission of requests to free slots, and chunked prefill of their prompts."""

import jax
import jax.numpy as jnp

from simpo_jax.arith import ceil_div
from simpo_jax.generate import kv_pages, scheduler
from simpo_jax.generate.scheduler import Queue, Work
from simpo_jax.generate.state import Engine, Slots, State, forward
from simpo_jax.generate.types import RequestArrays


def refill(engine: Engine, s: State, arrays: RequestArrays, work: Work) -> State:
  """Frees finished slots, admits the next requests and caches their prompts.

  All prompt tokens but the last are cached; the last one is the first input of decoding.
  """
  shape = engine.shape
  with jax.named_scope("admit"):
    queue = scheduler.retire(s.queue, work)
    queue, admitted = scheduler.admit(queue, work, shape.page_size)
    gather_by_request = lambda x: x.at[queue.request].get(mode="fill", fill_value=0)  # noqa: E731
    length, new = gather_by_request(arrays.length), admitted.new
    last = jnp.maximum(length - 1, 0)
    token = arrays.tokens.at[queue.request, last].get(mode="fill", fill_value=0)
    slots = jax.tree.map(
      lambda now, before: jnp.where(new, now, before),
      Slots(token, last, jnp.zeros_like(last)),
      s.slots,
    )
    seen = s.seen
    if seen is not None:
      seen = see(seen, new, gather_by_request(arrays.tokens), length)
  with jax.named_scope("prefill"):
    has_it = admitted.donor != jnp.arange(shape.slots)
    pool = prefill(engine, s.pool, queue, arrays, jnp.where(new & ~has_it, last, 0))
    if shape.shared_prompts:
      source, target = scheduler.tail_copies(queue, work, admitted, shape.page_size)
      copies = engine.max_over_groups(jnp.any(target < shape.num_pages).astype(jnp.int32))
      layers = copies * engine.cfg.num_hidden_layers
      pool = kv_pages.copy_pages(pool, source, target, layers, shape.num_pages)
  return s._replace(pool=pool, queue=queue, slots=slots, seen=seen)


def see(seen, new, tokens, length):
  """`seen`, reset to the prompt for the slots in `new`."""
  real = new[:, None] & (jnp.arange(tokens.shape[1]) < length[:, None])
  row = jnp.arange(seen.shape[0])[:, None]
  before = seen & ~new[:, None]
  return before.at[row, jnp.where(real, tokens, seen.shape[1])].set(True, mode="drop")


def prefill(
  engine: Engine, pool, queue: Queue, arrays: RequestArrays, todo, done=None
) -> jax.Array:
  """Caches the first `todo[i]` prompt tokens of slot i, or those after its first `done[i]`.

  Chunks of all prompts form one list; each pass processes the next `prefill_rows` of
  them. Several may be of one prompt: a pass writes all its keys and values before it
  attends, so a chunk finds those before it in the pool.
  """
  shape = engine.shape
  chunks = ceil_div(todo, shape.chunk)  # of each slot
  behind = jnp.cumsum(chunks)  # where each slot's chunks end in the list

  def one_pass(index, pool):
    place = index * shape.prefill_rows + jnp.arange(shape.prefill_rows, dtype=jnp.int32)
    slot = jnp.sum(place[:, None] >= behind, axis=1, dtype=jnp.int32)  # past the last: no slot
    of_slot = lambda x, none: x.at[slot].get(mode="fill", fill_value=none)  # noqa: E731
    before = (place - of_slot(behind - chunks, 0)) * shape.chunk
    start = before if done is None else of_slot(done, 0) + before
    token = jnp.arange(shape.chunk, dtype=jnp.int32)
    request = of_slot(queue.request, shape.requests)[:, None]
    tokens = arrays.tokens.at[request, start[:, None] + token].get(mode="fill", fill_value=0)
    count = jnp.clip(of_slot(todo, 0) - before, 0, shape.chunk)
    table = of_slot(queue.pages.table, shape.num_pages)
    return forward(engine, pool, table, tokens, start, count)[1]

  passes = engine.max_over_groups(ceil_div(behind[-1], shape.prefill_rows))
  return jax.lax.fori_loop(0, passes, one_pass, pool)
