"""One decode step: one token for every running slot."""

from typing import cast

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float32, Int16, Int32

from simpo_jax.generate.sampling.choose import choose, uniforms
from simpo_jax.generate.sampling.settings import Launch
from simpo_jax.generate.state import Engine, Slots, State, forward
from simpo_jax.generate.suppression import suppressed
from simpo_jax.generate.types import LENGTH, NONFINITE, RUNNING, STOP, Generated, Requests
from simpo_jax.models import llama


def decode(
  engine: Engine, s: State, requests: Requests, width: int, launch: Launch | None
) -> State:
  """Decodes one token for every running slot.

  A request whose logits are not finite ends before this token, with NONFINITE.

  Args:
    requests: of the local group, without a leading group axis.
    width: batch size of the step, at least the number of running slots.
    launch: what the requests of all groups ask for, from `launch_of`; None if it is not known.
  """
  cfg, shape, arrays, queue = engine.cfg, engine.shape, requests.each, s.queue
  # Independent of `jax_default_prng_impl`, so that samples are reproducible.
  key = cast(Array, jax.random.wrap_key_data(requests.seed, impl="threefry2x32"))
  # Running slots are sorted to the front, so that `width` rows suffice.
  slot = jnp.argsort(~queue.running, stable=True)[:width].astype(jnp.int32)
  alive = queue.running[slot]
  request = jnp.where(alive, queue.request[slot], shape.requests)

  def gather_by_request(x: Array) -> Array:
    return x.at[request].get(mode="fill", fill_value=0)

  token, position, stop = (x[slot] for x in s.slots)

  table = jnp.where(alive[:, None], queue.pages.table[slot], shape.num_pages)
  x, pool = forward(engine, s.pool, table, token[:, None], position, alive.astype(jnp.int32))
  with jax.named_scope("sample"):
    x = llama.norm(x[:, 0], engine.params["final_norm"], cfg)
    u = uniforms(key, gather_by_request(arrays.prompt), gather_by_request(arrays.sample), position)
    sampling = jax.tree.map(gather_by_request, arrays.sampling)
    # Dead rows have a penalty of 0, by which logits would be divided.
    penalty = jnp.where(alive, sampling.repetition_penalty, 1.0)
    sampling = sampling._replace(repetition_penalty=penalty)
    seen = None if s.seen is None else s.seen[slot]
    logits = llama.unembed(engine.params, x, cfg)
    banned = None
    if requests.suppression is not None:
      banned = suppressed(requests.suppression, gather_by_request(s.out.count))
    token, logprob = choose(
      logits, sampling, u, shape.sampling, seen, banned, launch, engine.across
    )

  with jax.named_scope("record"):
    stop = requests.stops[stop, token]
    out, finish = _record(s.out, request, token, logprob, stop, arrays.budget)

    def update(all_: Array, now: Array) -> Array:
      return all_.at[slot].set(now)

    return State(
      pool=pool,
      queue=queue._replace(running=queue.running.at[slot].set(alive & (finish == RUNNING))),
      slots=jax.tree.map(update, s.slots, Slots(token, position + 1, jnp.maximum(stop, 0))),
      seen=None if s.seen is None else s.seen.at[slot, token].set(True),
      out=out,
      tally=s.tally,
    )


def _record(
  out: Generated,
  request: Int32[Array, " B"],
  token: Int32[Array, " B"],
  logprob: Float32[Array, " B"],
  stop: Int16[Array, " B"],
  budget: Int32[Array, " N"],
) -> tuple[Generated, Int32[Array, " B"]]:
  """Appends a token to each answer, unless its logits were not finite.

  Args:
    request: the request of each row, out of range for a row without one.
    logprob: not finite if a logit is NaN or +inf.
    stop: the state of the stop automaton after the token.
    budget: tokens that each request may generate.

  Returns:
    The answers, and why each row's answer ends here (RUNNING if it does not).
  """

  def of_request(x: Int32[Array, " N"]) -> Int32[Array, " B"]:
    return x.at[request].get(mode="fill", fill_value=0)

  finite = jnp.isfinite(logprob)
  before = of_request(out.count)
  count = before + finite
  finish = jnp.where(stop < 0, STOP, jnp.where(count >= of_request(budget), LENGTH, RUNNING))
  finish = jnp.where(finite, finish, NONFINITE)
  appended = jnp.where(finite, request, out.count.shape[0])  # out of range: no token
  out = Generated(
    tokens=out.tokens.at[appended, before].set(token, mode="drop"),
    logprobs=out.logprobs.at[appended, before].set(logprob, mode="drop"),
    count=out.count.at[request].set(count, mode="drop"),
    finish=out.finish.at[request].set(finish, mode="drop"),
    logprob=out.logprob.at[appended].add(logprob, mode="drop"),
  )
  return out, finish
