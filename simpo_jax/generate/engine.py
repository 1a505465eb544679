"""Generation for an entire prompt set inside the compiled program.

The state is a queue of requests, a fixed number of slots and a paged KV pool. One
`lax.while_loop` refills free slots from the queue (admission, chunked prefill) and decodes
one token at a time for every running slot, without returning to the host until every
request is finished. The pool is a loop carry that is updated in place. It never passes
through a `lax.cond`, whose identity branch would copy it on some backends.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int32

from simpo_jax.generate import scheduler
from simpo_jax.generate.decode import decode
from simpo_jax.generate.prefill import refill
from simpo_jax.generate.sampling.settings import launch_of
from simpo_jax.generate.scheduler import Work
from simpo_jax.generate.state import Engine, LoopCounters, State, initial, select_state
from simpo_jax.generate.types import Generated, Requests

Carry = tuple[State, Int32[Array, ""] | None]  # state, and remaining decode steps if limited


def generate_group(engine: Engine, requests: Requests) -> Generated:
  """Answers one group's requests; requests and answers have no leading group axis."""
  work = _work(requests)
  return _rounds(engine, requests, work, _tallied(engine, initial(engine), work)).out


def generate_some(
  engine: Engine,
  requests: Requests,
  s: State,
  first: Bool[Array, ""],
  steps: Int32[Array, ""],
) -> State:
  """Like `generate_group`, but returns to the host after a number of decode steps.

  Args:
    s: the state returned by the last call; its values are ignored in the first call.
    first: whether this is the first call.
    steps: maximum number of decode steps.
  """
  work = _work(requests)
  s = select_state(first, initial(engine, s.pool), s)
  return _rounds(engine, requests, work, _tallied(engine, s, work), steps)


def _work(requests: Requests) -> Work:
  arrays = requests.each
  return Work(arrays.length, arrays.budget, arrays.prompt)


def _rounds(
  engine: Engine, requests: Requests, work: Work, s: State, left: Array | None = None
) -> State:
  """Refills and decodes until all requests are finished, or for `left` decode steps."""
  shape, arrays = engine.shape, requests.each
  launch = launch_of(arrays.sampling, engine.across) if shape.sampling.sampled else None

  def rounds(carry: Carry) -> Carry:
    s, left = carry
    s = _tallied(engine, refill(engine, s, arrays, work), work)
    carry = s, left
    for width, lower in zip(shape.widths, (*shape.widths[1:], 0), strict=True):

      def step(carry: Carry, width: int = width) -> Carry:
        s, left = carry
        s = _tallied(engine, decode(engine, s, requests, width, launch), work)
        return s, None if left is None else left - 1

      def enough(carry: Carry, lower: int = lower) -> Bool[Array, ""]:
        s, left = carry
        return _and_left((s.tally.running > lower) & (s.tally.refill == 0), left)

      with jax.named_scope(f"decode_{width}"):
        carry = jax.lax.while_loop(enough, step, carry)
    return carry

  def unanswered(carry: Carry) -> Bool[Array, ""]:
    s, left = carry
    return _and_left((s.tally.running > 0) | (s.tally.pending > 0), left)

  return jax.lax.while_loop(unanswered, rounds, (s, left))[0]


def _and_left(wanted: Bool[Array, ""], left: Int32[Array, ""] | None) -> Bool[Array, ""]:
  return wanted if left is None else wanted & (left > 0)


def _tallied(engine: Engine, s: State, work: Work) -> State:
  """Updates the loop counters; the only communication between groups in a decode step."""
  refill = scheduler.wants_refill(s.queue, work, engine.shape.prefill_rows)
  counts = (
    jnp.sum(s.queue.running, dtype=jnp.int32),
    scheduler.pending(s.queue, work),
    refill.astype(jnp.int32),
  )
  counts = engine.across.max_over_groups(jnp.stack(counts))
  return s._replace(tally=LoopCounters(*counts))
