"""Admission of requests to free slots, and chunked prefill of their prompts."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from simpo_jax.arith import ceil_div
from simpo_jax.generate import kv_pages, scheduler
from simpo_jax.generate.kv_pages import KVPool
from simpo_jax.generate.scheduler import Queue, Work
from simpo_jax.generate.state import Engine, Slots, State, forward
from simpo_jax.generate.types import RequestArrays
from simpo_jax.kernels.loops import fori_loop


def refill(engine: Engine, s: State, arrays: RequestArrays, work: Work) -> State:
  """Frees finished slots, admits the next requests and caches their prompts.

  All prompt tokens except the last are cached; the last is the first input of decoding.

  Args:
    arrays, work: the requests of this shard's prompt group, without a leading group axis.
  """
  shape = engine.shape
  with jax.named_scope("admit"):
    queue = scheduler.retire(s.queue, work)
    queue, admitted = scheduler.admit(queue, work, shape.page_size)

    def gather_by_request(x: Array) -> Array:
      return x.at[queue.request].get(mode="fill", fill_value=0)

    length, new = gather_by_request(arrays.length), admitted.new
    last = jnp.maximum(length - 1, 0)
    token = arrays.tokens.at[queue.request, last].get(mode="fill", fill_value=0)

    def where_new(now: Array, before: Array) -> Array:
      return jnp.where(new, now, before)

    slots: Slots = jax.tree.map(where_new, Slots(token, last, jnp.zeros_like(last)), s.slots)
    seen = s.seen
    if seen is not None:
      seen = reset_seen(seen, new, gather_by_request(arrays.tokens), length)
  with jax.named_scope("prefill"):
    has_donor = admitted.donor != jnp.arange(shape.slots)
    pool = prefill(engine, s.pool, queue, arrays, jnp.where(new & ~has_donor, last, 0))
    if shape.shared_prompts:
      source, target = scheduler.tail_copies(queue, work, admitted, shape.page_size)
      any_copies = engine.across.max_over_groups(
        jnp.any(target < shape.num_pages).astype(jnp.int32)
      )
      layers = any_copies * engine.cfg.num_hidden_layers
      pool = kv_pages.copy_pages(pool, source, target, layers, shape.num_pages)
  return s._replace(pool=pool, queue=queue, slots=slots, seen=seen)


def reset_seen(
  seen: Bool[Array, "slots V"],
  new: Bool[Array, " slots"],
  tokens: Int32[Array, "slots prompt_tokens"],
  length: Int32[Array, " slots"],
) -> Bool[Array, "slots V"]:
  """Sets the seen tokens of the slots in `new`, for the repetition penalty, to their prompts.

  The first `length` of `tokens` are the prompt."""
  real = new[:, None] & (jnp.arange(tokens.shape[1]) < length[:, None])
  row = jnp.arange(seen.shape[0])[:, None]
  before = seen & ~new[:, None]
  return before.at[row, jnp.where(real, tokens, seen.shape[1])].set(True, mode="drop")


def prefill(
  engine: Engine,
  pool: KVPool,
  queue: Queue,
  arrays: RequestArrays,
  todo: Int32[Array, " slots"],
  done: Int32[Array, " slots"] | None = None,
) -> KVPool:
  """Caches `todo[i]` prompt tokens of slot i, after the first `done[i]` (default 0).

  The chunks of all prompts form one list; each pass processes the next `prefill_rows` of
  them. A pass may contain several chunks of one prompt: it writes all their keys and values
  to the pool before any of them attends.
  """
  shape = engine.shape
  chunks = ceil_div(todo, shape.chunk)  # per slot
  ends = jnp.cumsum(chunks)  # of each slot's chunks in the list

  def of_slot(x: Array, slot: Array, none: int) -> Array:
    return x.at[slot].get(mode="fill", fill_value=none)

  def one_pass(index: Int32[Array, ""], pool: KVPool) -> KVPool:
    place = index * shape.prefill_rows + jnp.arange(shape.prefill_rows, dtype=jnp.int32)
    slot = jnp.sum(place[:, None] >= ends, axis=1, dtype=jnp.int32)  # out of range: no slot
    before = (place - of_slot(ends - chunks, slot, 0)) * shape.chunk
    start = before if done is None else of_slot(done, slot, 0) + before
    offset = jnp.arange(shape.chunk, dtype=jnp.int32)
    request = of_slot(queue.request, slot, shape.requests)[:, None]
    tokens = arrays.tokens.at[request, start[:, None] + offset].get(mode="fill", fill_value=0)
    count = jnp.clip(of_slot(todo, slot, 0) - before, 0, shape.chunk)
    table = of_slot(queue.pages.table, slot, shape.num_pages)
    return forward(engine, pool, table, tokens, start, count)[1]

  passes = engine.across.max_over_groups(ceil_div(ends[-1], shape.prefill_rows))
  return fori_loop(0, passes, one_pass, pool)
