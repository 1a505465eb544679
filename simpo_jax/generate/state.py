"""The state of a generation on the device, and what stays the same over all of it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from simpo_jax.generate import kv_pages, scheduler
from simpo_jax.generate.scheduler import Queue
from simpo_jax.generate.types import RUNNING, Generated, GenerateShape
from simpo_jax.models import llama
from simpo_jax.models.config import ModelConfig


class Slots(NamedTuple):
  """The sequences being decoded, int32 `[slots]`."""

  token: jax.Array  # the newest token, not yet in the cache
  position: jax.Array  # its index in the sequence
  stop: jax.Array  # state of the stop automaton


class LoopCounters(NamedTuple):
  """Loop counters, max-reduced over groups, so that all hosts run as many iterations."""

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
  tally: LoopCounters


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
  max_over_groups: Callable[[jax.Array], jax.Array] = lambda x: x


def select_state(first, fresh: State, s: State) -> State:
  """`fresh` or `s`, whose pool is the same: what lies in it matters only where it was written."""
  pool = s.pool
  fresh, s = fresh._replace(pool=None), s._replace(pool=None)
  return jax.tree.map(lambda a, b: jnp.where(first, a, b), fresh, s)._replace(pool=pool)


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
    tally=LoopCounters(*[jnp.zeros((), jnp.int32)] * len(LoopCounters._fields)),
  )


def forward(engine: Engine, pool, table, tokens, start, count):
  """Runs `tokens [B, T]` through all layers, writing and reading the cache.

  Row b has `count[b]` tokens, at `start[b]` and after in its sequence; `table` is the
  page table of these rows.
  """
  cfg = engine.cfg
  positions = start[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
  angles = llama.rope_angles(positions, cfg)
  x = llama.embed(engine.params, tokens, engine.dtype, cfg)
  for index, weights in enumerate(engine.params["layers"]):
    ids = kv_pages.layer_pages(table, index, engine.shape.num_pages, cfg.num_hidden_layers)

    def attend(q, k, v, pool=pool, ids=ids, window=cfg.windows[index]):
      return engine.attend(q, k, v, pool, ids, start, count, window=window)

    x, pool = llama.layer(weights, x, angles, attend, cfg)
  return x, pool
