"""A conversation on the device: one slot of the generation engine, whose cache stays.

The host launches a program of `converse` for a few tokens at a time. Its shapes are those
of the longest conversation, so that one compilation serves all turns.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from simpo_jax import paging
from simpo_jax.generate import Engine, Requests, Slots, State, decode, either, initial, prefill, see


class Turn(NamedTuple):
  """What one launch does; int32 [], but for `begins`."""

  cached: jax.Array  # tokens of the conversation that are in the cache
  until: jax.Array  # tokens of it that shall be; when an answer begins, all but the last
  begins: jax.Array  # bool [], an answer begins
  steps: jax.Array  # decode steps, at most; 0 until all is cached


def converse(engine: Engine, requests: Requests, s: State, turn: Turn) -> State:
  """Caches some of the conversation, or goes on with its answer.

  The conversation so far is the prompt of the one request. What it has in common with what
  is in the cache stays there: only the other tokens are computed.

  Args:
    engine: of one slot and one request.
    s: what the last call has returned; the first one reads nothing of it.
  """
  asked, P = requests.each, engine.shape.num_pages
  fresh, last, all_slots = initial(engine, s.pool), asked.length - 1, jnp.ones((1,), bool)
  token = jnp.take_along_axis(asked.tokens, last[:, None], axis=1)[:, 0]
  queue = fresh.queue._replace(  # the slot holds every page, for good
    pages=paging.Pages(jnp.ones((P,), jnp.int32), jnp.arange(P, dtype=jnp.int32)[None]),
    next=jnp.ones((), jnp.int32),
    request=jnp.zeros((1,), jnp.int32),
    running=all_slots,
  )
  fresh = fresh._replace(queue=queue, slots=Slots(token, last, jnp.zeros_like(last)))
  if fresh.seen is not None:
    fresh = fresh._replace(seen=see(fresh.seen, all_slots, asked.tokens, asked.length))
  s = either(turn.begins, fresh, s)
  with jax.named_scope("prefill"):
    todo, done = (turn.until - turn.cached)[None], turn.cached[None]
    s = s._replace(pool=prefill(engine, s.pool, queue, asked, todo, done))

  def wanted(carry):
    s, left = carry
    return s.queue.running[0] & (left > 0)

  def step(carry):
    s, left = carry
    return decode(engine, s, requests, 1), left - 1

  with jax.named_scope("decode"):
    return jax.lax.while_loop(wanted, step, (s, turn.steps))[0]
