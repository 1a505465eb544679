"""The state of a generation on the device, and the engine that holds its constants."""

from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float, Int32

from simpo_jax.generate import kv_pages, scheduler
from simpo_jax.generate.kv_pages import KVPool
from simpo_jax.generate.sampling.settings import ONE_DEVICE, Across
from simpo_jax.generate.scheduler import Queue
from simpo_jax.generate.types import RUNNING, Generated, GenerateShape
from simpo_jax.models import llama
from simpo_jax.models.config import ModelConfig


class Slots(NamedTuple):
  """The sequences being decoded."""

  token: Int32[Array, " slots"]  # the newest token, not yet in the cache
  position: Int32[Array, " slots"]  # its index in the sequence
  stop: Int32[Array, " slots"]  # state of the stop automaton


class LoopCounters(NamedTuple):
  """Loop counters, max-reduced over groups so that all hosts run the same iterations."""

  running: Int32[Array, ""]  # running slots
  pending: Int32[Array, ""]  # waiting requests
  refill: Int32[Array, ""]  # 1 if any group wants to admit requests


class State(NamedTuple):
  """The loop carry of a generation."""

  pool: KVPool
  queue: Queue
  slots: Slots
  seen: Bool[Array, "slots V"] | None  # tokens in prompt or answer; None without penalty
  out: Generated
  tally: LoopCounters


@runtime_checkable
class PagedAttend(Protocol):
  """Writes a chunk's keys and values to the pool, then attends to its rows' pages.

  `page_ids`, `start` and `count` are as in `paged_attention.write`. A query sees the
  `window` newest tokens, or all if it is None. Returns the attention output and the pool.
  """

  def __call__(
    self,
    q: llama.Query,
    k: llama.KeyValue,
    v: llama.KeyValue,
    pool: KVPool,
    page_ids: Int32[Array, "B pages_per_seq"],
    start: Int32[Array, " B"],
    count: Int32[Array, " B"],
    /,
    *,
    window: int | None,
  ) -> tuple[llama.Query, KVPool]: ...


class Engine(NamedTuple):
  """The constants of a generation."""

  params: llama.Params  # decode weights, layers unstacked
  cfg: ModelConfig
  shape: GenerateShape
  dtype: DTypeLike  # of activations and the KV pool
  attend: PagedAttend
  place_pool: Callable[[KVPool], KVPool] = lambda pool: pool  # constrains the pool's sharding
  across: Across = ONE_DEVICE  # groups run their loops in lockstep


def select_state(first: Bool[Array, ""], fresh: State, s: State) -> State:
  """Returns `fresh` for the `first` launch, else `s`; the pool is always that of `s`.

  A pool's old contents do not matter: a sequence reads only what it has written.
  """

  def select(a: Array, b: Array) -> Array:
    return jnp.where(first, a, b)

  rest: State = jax.tree.map(select, fresh._replace(pool=None), s._replace(pool=None))
  return rest._replace(pool=s.pool)


def pool_shape(cfg: ModelConfig, shape: GenerateShape) -> tuple[int, int, int]:
  """Returns the shape of the KV pool, `[L * P, page, 2 * K * h]`."""
  lanes = 2 * cfg.num_key_value_heads * cfg.head_dim
  return cfg.num_hidden_layers * shape.num_pages, shape.page_size, lanes


def initial(engine: Engine, pool: KVPool | None = None) -> State:
  """Returns the state before the first request, with a new pool if `pool` is None."""
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


def forward(
  engine: Engine,
  pool: KVPool,
  table: Int32[Array, "B pages_per_seq"],
  tokens: Int32[Array, "B T"],
  start: Int32[Array, " B"],
  count: Int32[Array, " B"],
) -> tuple[Float[Array, "B T D"], KVPool]:
  """Runs `tokens` through all layers, writing to and reading from the KV pool.

  Args:
    pool: the KV pool of all layers.
    table: the page table of these rows.
    tokens: row b has `count[b]` tokens, at positions `start[b]` and following.

  Returns:
    Hidden states before the final norm, and the pool.
  """
  cfg = engine.cfg
  positions = start[:, None] + jnp.arange(tokens.shape[1], dtype=jnp.int32)
  angles = llama.rope_angles(positions, cfg)
  x = llama.embed(engine.params, tokens, engine.dtype, cfg)
  for index, weights in enumerate(engine.params["layers"]):
    ids = kv_pages.layer_pages(table, index, engine.shape.num_pages, cfg.num_hidden_layers)

    def attend(
      q: llama.Query,
      k: llama.KeyValue,
      v: llama.KeyValue,
      pool: KVPool = pool,
      ids: Array = ids,
      window: int | None = cfg.windows[index],
    ) -> tuple[llama.Query, KVPool]:
      return engine.attend(q, k, v, pool, ids, start, count, window=window)

    x, pool = llama.layer(weights, x, angles, attend, cfg)
  return x, pool
