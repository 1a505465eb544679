"""Generation of a whole prompt set inside the one program.

A queue of requests, a number of slots, a paged KV pool. One `lax.while_loop` refills
free slots from the queue (admission, prefill in chunks) and decodes one token for
every running slot at a time; nothing returns to the host until every request has its
length and finish reason. The pool is a loop carry, written in place: it never passes
through a `lax.cond`, whose untouched branch would copy it on some backends.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from simpo_jax import model as llama
from simpo_jax import paging, scheduler
from simpo_jax.arith import ceil_div
from simpo_jax.model_config import ModelConfig
from simpo_jax.sampling import Sampling, choose, uniforms
from simpo_jax.scheduler import Queue, Work

RUNNING, STOP, LENGTH = 0, 1, 2
FINISH_REASONS = {STOP: "stop", LENGTH: "length"}


class GenerateShape(NamedTuple):
  """The fixed sizes and choices of generation; part of the compiled program."""

  groups: int  # independent prompt groups: hosts, or 1 for the global mesh
  requests: int  # N requests per group
  slots: int  # sequences decoded at once, per group
  widths: tuple[int, ...]  # batch sizes of a decode step, falling from `slots`
  prompt_tokens: int  # of the longest prompt
  max_new_tokens: int
  page_size: int
  num_pages: int  # P, per group and layer
  chunk: int  # T, prompt tokens of a row of a prefill pass
  prefill_rows: int  # rows of a prefill pass
  stop_states: int  # of the stop automaton
  attention: str  # implementation of paged attention
  shared_prompts: bool  # several requests have the same prompt
  repetition_penalty: bool  # some request has one
  sampled: bool  # some request has a temperature

  @property
  def pages_per_seq(self) -> int:
    return paging.pages_needed(self.prompt_tokens + self.max_new_tokens, self.page_size)


class Asked(NamedTuple):
  """What each request asks for: arrays `[groups, N]`, N requests per group."""

  tokens: jax.Array  # int32 [groups, N, T], the prompt, padded on the right
  length: jax.Array  # int32, prompt tokens; 0 for an unused entry, which come last
  budget: jax.Array  # int32, tokens it may generate, at most `max_new_tokens`
  prompt: jax.Array  # int32, global prompt index
  sample: jax.Array  # int32, sample index of that prompt
  sampling: Sampling


class Requests(NamedTuple):
  """What to generate."""

  each: Asked
  stops: jax.Array  # int16 [states, V], the stop automaton (`stopping.py`)
  seed: jax.Array  # uint32 [2], key data


class Generated(NamedTuple):
  """The answers, in request order: `[groups, N]`, or `[groups, N, max_new_tokens]`."""

  tokens: jax.Array  # int32, a stop token included; -1 past the end
  logprobs: jax.Array  # float32, the model's log-probability of each token; 0 past the end
  count: jax.Array  # int32, tokens generated
  finish: jax.Array  # int32: STOP, LENGTH, or RUNNING for an unused entry
  logprob: jax.Array  # float32, sum of `logprobs`


class Slots(NamedTuple):
  """The sequences being decoded, int32 `[slots]`."""

  token: jax.Array  # the newest token, not yet in the cache
  position: jax.Array  # its index in the sequence
  stop: jax.Array  # state of the stop automaton


class _Tally(NamedTuple):
  """What the loops go by: the same on all groups, so that their loops keep step."""

  running: jax.Array  # int32, most running slots of any group
  pending: jax.Array  # int32, most requests that wait in any group
  refill: jax.Array  # int32, 1 if any group wants to admit


class State(NamedTuple):
  """The carry of all loops."""

  pool: jax.Array  # [L * P, page, 2Kh]
  queue: Queue
  slots: Slots
  seen: jax.Array | None  # bool [slots, V], tokens of prompt and answer, if penalised
  out: Generated
  tally: _Tally


# attend(q [B,T,H,h], k, v [B,T,K,h], pool, page_ids, start, count, window=) -> (out like q, pool)
PagedAttend = Callable[..., tuple[jax.Array, jax.Array]]


class Engine(NamedTuple):
  """What stays the same over a whole generation."""

  params: llama.Params  # decode weights, layers unstacked
  cfg: ModelConfig
  shape: GenerateShape
  dtype: Any
  attend: PagedAttend  # writes new keys and values to the pool, then attends to it
  place_pool: Callable[[jax.Array], jax.Array] = lambda pool: pool  # constrains its sharding
  # Maximum over all groups, whose loops run in step with this one's.
  over_groups: Callable[[jax.Array], jax.Array] = lambda x: x


def generate_group(engine: Engine, requests: Requests) -> Generated:
  """Answers one group's requests, without a leading group axis: `[N]` in request order."""
  work = _work(requests)
  return _rounds(engine, requests, work, _tallied(engine, initial(engine), work)).out


def generate_some(
  engine: Engine, requests: Requests, s: State, first: jax.Array, steps: jax.Array
) -> State:
  """As `generate_group`, but returns after so many decode steps, for the host to look at.

  Args:
    s: what the last call has returned; the first one reads nothing of it.
    first: bool [].
    steps: int32 [], at most.
  """
  work = _work(requests)
  s = either(first, initial(engine, s.pool), s)
  return _rounds(engine, requests, work, _tallied(engine, s, work), steps)


def _work(requests: Requests) -> Work:
  asked = requests.each
  return Work(asked.length, asked.budget, asked.prompt)


def either(first, fresh: State, s: State) -> State:
  """`fresh` or `s`, whose pool is the same: what lies in it matters only where it was written."""
  pool = s.pool
  fresh, s = fresh._replace(pool=None), s._replace(pool=None)
  return jax.tree.map(lambda a, b: jnp.where(first, a, b), fresh, s)._replace(pool=pool)


def _rounds(engine: Engine, requests: Requests, work: Work, s: State, left=None) -> State:
  """Refills and decodes until all is answered, or `left` decode steps are made."""
  shape, asked = engine.shape, requests.each

  def rounds(carry):
    s, left = carry
    s = _tallied(engine, _refill(engine, s, asked, work), work)
    carry = s, left
    for width, lower in zip(shape.widths, (*shape.widths[1:], 0), strict=True):

      def step(carry, width=width):
        s, left = carry
        s = _tallied(engine, decode(engine, s, requests, width), work)
        return s, None if left is None else left - 1

      def enough(carry, lower=lower):
        s, left = carry
        return _and_left((s.tally.running > lower) & (s.tally.refill == 0), left)

      with jax.named_scope(f"decode_{width}"):
        carry = jax.lax.while_loop(enough, step, carry)
    return carry

  def unanswered(carry):
    s, left = carry
    return _and_left((s.tally.running > 0) | (s.tally.pending > 0), left)

  return jax.lax.while_loop(unanswered, rounds, (s, left))[0]


def _and_left(wanted, left):
  return wanted if left is None else wanted & (left > 0)


def pool_shape(cfg: ModelConfig, shape: GenerateShape) -> tuple[int, int, int]:
  """`[L * P, page, 2Kh]`."""
  lanes = 2 * cfg.num_key_value_heads * cfg.head_dim
  return cfg.num_hidden_layers * shape.num_pages, shape.page_size, lanes


def initial(engine: Engine, pool: jax.Array | None = None) -> State:
  """Before the first request; makes a pool if it is given none."""
  shape, cfg = engine.shape, engine.cfg
  N, slots = shape.requests, shape.slots
  if pool is None:
    pool = jnp.zeros(pool_shape(cfg, shape), engine.dtype)
  zeros = jnp.zeros((slots,), jnp.int32)
  return State(
    pool=engine.place_pool(pool),
    queue=scheduler.init_queue(N, shape.num_pages, slots, shape.pages_per_seq),
    slots=Slots(zeros, zeros, zeros),
    seen=jnp.zeros((slots, cfg.vocab_size), bool) if shape.repetition_penalty else None,
    out=Generated(
      tokens=jnp.full((N, shape.max_new_tokens), -1, jnp.int32),
      logprobs=jnp.zeros((N, shape.max_new_tokens), jnp.float32),
      count=jnp.zeros((N,), jnp.int32),
      finish=jnp.full((N,), RUNNING, jnp.int32),
      logprob=jnp.zeros((N,), jnp.float32),
    ),
    tally=_Tally(*[jnp.zeros((), jnp.int32)] * len(_Tally._fields)),
  )


def _tallied(engine: Engine, s: State, work: Work) -> State:
  """Brings the tally up to date: the one exchange between groups per decode step."""
  refill = scheduler.wants_refill(s.queue, work, engine.shape.prefill_rows)
  counts = (
    jnp.sum(s.queue.running, dtype=jnp.int32),
    scheduler.pending(s.queue, work),
    refill.astype(jnp.int32),
  )
  counts = engine.over_groups(jnp.stack(counts))
  return s._replace(tally=_Tally(*counts))


def _forward(engine: Engine, pool, table, tokens, start, count):
  """Runs `tokens [B, T]` through all layers, writing and reading the cache.

  Row b has `count[b]` tokens, at `start[b]` and after in its sequence; `table` is the
  page table of these rows.
  """
  cfg = engine.cfg
  positions = start[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
  angles = llama.rope_angles(positions, cfg)
  x = llama.embed(engine.params, tokens, engine.dtype, cfg)
  for index, weights in enumerate(engine.params["layers"]):
    ids = paging.layer_pages(table, index, engine.shape.num_pages, cfg.num_hidden_layers)

    def attend(q, k, v, pool=pool, ids=ids, window=cfg.windows[index]):
      return engine.attend(q, k, v, pool, ids, start, count, window=window)

    x, pool = llama.layer(weights, x, angles, attend, cfg)
  return x, pool


# --- admission and prefill ---------------------------------------------------------------


def _refill(engine: Engine, s: State, asked: Asked, work: Work) -> State:
  """Frees finished slots, admits the next requests and caches their prompts.

  Of a prompt, all tokens but the last are cached; the last is the first input of
  decoding.
  """
  shape = engine.shape
  with jax.named_scope("admit"):
    queue = scheduler.retire(s.queue, work)
    queue, admitted = scheduler.admit(queue, work, shape.page_size)
    mine = lambda x: x.at[queue.request].get(mode="fill", fill_value=0)  # noqa: E731
    length, new = mine(asked.length), admitted.new
    last = jnp.maximum(length - 1, 0)
    token = asked.tokens.at[queue.request, last].get(mode="fill", fill_value=0)
    slots = jax.tree.map(
      lambda now, before: jnp.where(new, now, before),
      Slots(token, last, jnp.zeros_like(last)),
      s.slots,
    )
    seen = s.seen
    if seen is not None:
      seen = see(seen, new, mine(asked.tokens), length)
  with jax.named_scope("prefill"):
    has_it = admitted.donor != jnp.arange(shape.slots)
    pool = prefill(engine, s.pool, queue, asked, jnp.where(new & ~has_it, last, 0))
    if shape.shared_prompts:
      source, target = scheduler.tail_copies(queue, work, admitted, shape.page_size)
      copies = engine.over_groups(jnp.any(target < shape.num_pages).astype(jnp.int32))
      layers = copies * engine.cfg.num_hidden_layers
      pool = paging.copy_pages(pool, source, target, layers, shape.num_pages)
  return s._replace(pool=pool, queue=queue, slots=slots, seen=seen)


def see(seen, new, tokens, length):
  """`seen`, where the slots in `new` have seen their prompts and nothing else."""
  real = new[:, None] & (jnp.arange(tokens.shape[1]) < length[:, None])
  row = jnp.arange(seen.shape[0])[:, None]
  before = seen & ~new[:, None]
  return before.at[row, jnp.where(real, tokens, seen.shape[1])].set(True, mode="drop")


def prefill(engine: Engine, pool, queue: Queue, asked: Asked, todo, done=None) -> jax.Array:
  """Caches the first `todo[i]` prompt tokens of slot i, or those after its first `done[i]`.

  The prompts' chunks stand in one line, and a pass takes the next `prefill_rows` of
  them. Several may be of one prompt: a pass writes all its keys and values before it
  attends, so a chunk finds those before it in the pool.
  """
  shape = engine.shape
  chunks = ceil_div(todo, shape.chunk)  # of each slot
  behind = jnp.cumsum(chunks)  # where each slot's chunks end in the line

  def one_pass(index, pool):
    place = index * shape.prefill_rows + jnp.arange(shape.prefill_rows, dtype=jnp.int32)
    slot = jnp.sum(place[:, None] >= behind, axis=1, dtype=jnp.int32)  # past the last: no slot
    of_slot = lambda x, none: x.at[slot].get(mode="fill", fill_value=none)  # noqa: E731
    before = (place - of_slot(behind - chunks, 0)) * shape.chunk
    start = before if done is None else of_slot(done, 0) + before
    token = jnp.arange(shape.chunk, dtype=jnp.int32)
    request = of_slot(queue.request, shape.requests)[:, None]
    tokens = asked.tokens.at[request, start[:, None] + token].get(mode="fill", fill_value=0)
    count = jnp.clip(of_slot(todo, 0) - before, 0, shape.chunk)
    table = of_slot(queue.pages.table, shape.num_pages)
    return _forward(engine, pool, table, tokens, start, count)[1]

  passes = engine.over_groups(ceil_div(behind[-1], shape.prefill_rows))
  return jax.lax.fori_loop(0, passes, one_pass, pool)


# --- decoding ----------------------------------------------------------------------------


def decode(engine: Engine, s: State, requests: Requests, width: int) -> State:
  """One token for every running slot; at most `width` of them run."""
  cfg, shape, asked, queue = engine.cfg, engine.shape, requests.each, s.queue
  # Pinned: the key must not depend on the environment's default generator.
  key = jax.random.wrap_key_data(requests.seed, impl="threefry2x32")
  # The running slots come first, so that a step is as wide as what runs.
  slot = jnp.argsort(~queue.running, stable=True)[:width].astype(jnp.int32)
  alive = queue.running[slot]
  request = jnp.where(alive, queue.request[slot], shape.requests)
  mine = lambda x: x.at[request].get(mode="fill", fill_value=0)  # noqa: E731
  token, position, stop = (x[slot] for x in s.slots)

  table = jnp.where(alive[:, None], queue.pages.table[slot], shape.num_pages)
  x, pool = _forward(engine, s.pool, table, token[:, None], position, alive.astype(jnp.int32))
  with jax.named_scope("sample"):
    x = llama.norm(x[:, 0], engine.params["final_norm"], cfg)
    u = uniforms(key, mine(asked.prompt), mine(asked.sample), position)
    sampling = jax.tree.map(mine, asked.sampling)
    # A dead row must not divide by its zero.
    penalty = jnp.where(alive, sampling.repetition_penalty, 1.0)
    sampling = sampling._replace(repetition_penalty=penalty)
    seen = None if s.seen is None else s.seen[slot]
    logits = llama.unembed(engine.params, x, cfg)
    token, logprob = choose(logits, sampling, u, seen, shape.sampled)

  with jax.named_scope("record"):
    stop = requests.stops[stop, token]
    count = mine(s.out.count) + 1
    finish = jnp.where(stop < 0, STOP, jnp.where(count >= mine(asked.budget), LENGTH, RUNNING))
    out = Generated(
      tokens=s.out.tokens.at[request, count - 1].set(token, mode="drop"),
      logprobs=s.out.logprobs.at[request, count - 1].set(logprob, mode="drop"),
      count=s.out.count.at[request].set(count, mode="drop"),
      finish=s.out.finish.at[request].set(finish, mode="drop"),
      logprob=s.out.logprob.at[request].add(logprob, mode="drop"),
    )
    return State(
      pool=pool,
      queue=queue._replace(running=queue.running.at[slot].set(alive & (finish == RUNNING))),
      slots=jax.tree.map(
        lambda all_, now: all_.at[slot].set(now),
        s.slots,
        Slots(token, position + 1, jnp.maximum(stop, 0)),
      ),
      seen=None if s.seen is None else s.seen.at[slot, token].set(True),
      out=out,
      tally=s.tally,
    )
