"""One step of a chat: a single slot of the generation engine with a persistent KV cache.

The host launches the compiled `chat_step` for a few tokens at a time. Shapes are sized for
the longest conversation, so one compilation serves all turns.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from simpo_jax.generate import kv_pages
from simpo_jax.generate.decode import decode
from simpo_jax.generate.prefill import prefill, reset_seen
from simpo_jax.generate.sampling.settings import launch_of
from simpo_jax.generate.state import Engine, Slots, State, initial, select_state
from simpo_jax.generate.types import Requests


class ChatStep(NamedTuple):
  """The inputs of one launch."""

  cached: Int32[Array, ""]  # tokens of the conversation that are already in the cache
  until: Int32[Array, ""]  # tokens to cache by the end; when an answer begins, all but the last
  begins: Bool[Array, ""]  # whether an answer begins
  steps: Int32[Array, ""]  # maximum decode steps; 0 until the conversation is cached


def chat_step(engine: Engine, requests: Requests, s: State, turn: ChatStep) -> State:
  """Caches part of the conversation, or continues its answer.

  The conversation so far is the prompt of the single request. Its common prefix with the
  cache is reused; only the remaining tokens are computed.

  Args:
    engine: has one slot and one request.
    requests: the single request, without a leading group axis.
    s: the state returned by the last call; its values are ignored in the first call.
  """
  arrays, P = requests.each, engine.shape.num_pages
  fresh, last, all_slots = initial(engine, s.pool), arrays.length - 1, jnp.ones((1,), bool)
  token = jnp.take_along_axis(arrays.tokens, last[:, None], axis=1)[:, 0]
  queue = fresh.queue._replace(  # the single slot always holds every page
    pages=kv_pages.Pages(jnp.ones((P,), jnp.int32), jnp.arange(P, dtype=jnp.int32)[None]),
    next=jnp.ones((), jnp.int32),
    request=jnp.zeros((1,), jnp.int32),
    running=all_slots,
  )
  fresh = fresh._replace(queue=queue, slots=Slots(token, last, jnp.zeros_like(last)))
  if fresh.seen is not None:
    fresh = fresh._replace(seen=reset_seen(fresh.seen, all_slots, arrays.tokens, arrays.length))
  s = select_state(turn.begins, fresh, s)
  with jax.named_scope("prefill"):
    todo, done = (turn.until - turn.cached)[None], turn.cached[None]
    s = s._replace(pool=prefill(engine, s.pool, queue, arrays, todo, done))

  launch = launch_of(arrays.sampling, engine.across)

  def wanted(carry: tuple[State, Array]) -> Bool[Array, ""]:
    s, left = carry
    return s.queue.running[0] & (left > 0)

  def step(carry: tuple[State, Array]) -> tuple[State, Array]:
    s, left = carry
    return decode(engine, s, requests, 1, launch), left - 1

  with jax.named_scope("decode"):
    return jax.lax.while_loop(wanted, step, (s, turn.steps))[0]
