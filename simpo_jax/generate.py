"""Generation of a whole prompt set inside the one program.

Prefill in fixed chunks, then a `lax.while_loop` that decodes one token for every
slot at a time over the paged KV cache. The cache is a loop carry, written in
place; nothing returns to the host until every request has its length and finish
reason.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from simpo_jax import model as llama
from simpo_jax import paging
from simpo_jax.arith import ceil_div
from simpo_jax.kernels.paged_attention import paged_attention, paged_prefill
from simpo_jax.model_config import ModelConfig
from simpo_jax.sampling import Sampling, choose, uniforms

RUNNING, STOP, LENGTH = 0, 1, 2
FINISH_REASONS = {STOP: "stop", LENGTH: "length"}
PREFILL_ROWS = 8  # prompts prefilled together


class GenerateShape(NamedTuple):
  """The fixed sizes and choices of generation; part of the compiled program."""

  groups: int  # independent prompt groups: hosts, or 1 for the global mesh
  requests: int  # N requests per group, a multiple of `slots`
  slots: int  # sequences decoded at once, per group
  prompt_tokens: int  # T, a multiple of `chunk`
  max_new_tokens: int
  page_size: int
  chunk: int
  attention: str  # implementation of paged attention

  @property
  def pages_per_seq(self) -> int:
    return paging.pages_needed(self.prompt_tokens + self.max_new_tokens, self.page_size)

  @property
  def num_pages(self) -> int:
    """P per layer: the worst case of every slot, so that no sequence can run out."""
    return self.slots * self.pages_per_seq


class Asked(NamedTuple):
  """What each request asks for: arrays `[groups, N]`, N requests per group."""

  tokens: jax.Array  # int32 [groups, N, T], the prompt, padded on the right
  length: jax.Array  # int32, prompt tokens; 0 for an empty request
  prompt: jax.Array  # int32, global prompt index
  sample: jax.Array  # int32, sample index of that prompt
  sampling: Sampling


class Requests(NamedTuple):
  """What to generate."""

  each: Asked
  stop_ids: jax.Array  # int32 [E], end-of-turn tokens, -1 for none
  seed: jax.Array  # uint32 [2], key data


class Generated(NamedTuple):
  """The answers, in request order: `[groups, N]`, tokens `[groups, N, max_new_tokens]`."""

  tokens: jax.Array  # int32, a stop token included; -1 past the end
  count: jax.Array  # int32, tokens generated
  finish: jax.Array  # int32: STOP, LENGTH, or RUNNING for an empty request
  logprob: jax.Array  # float32, sum of the model's log-probabilities of the tokens


class _Decode(NamedTuple):
  """The carry of the decode loop, `[slots]` unless said otherwise."""

  pool: jax.Array  # [L * P, page, 2K, h]
  token: jax.Array  # the newest token, not yet in the cache
  position: jax.Array  # its index in the sequence
  out: Generated


class _Engine(NamedTuple):
  """What stays the same over a whole generation."""

  params: llama.Params  # decode weights, layers unstacked
  cfg: ModelConfig
  shape: GenerateShape
  dtype: Any
  over_groups: Callable[[jax.Array], jax.Array]  # maximum over all groups


def generate_group(
  params: llama.Params,
  requests: Requests,
  cfg: ModelConfig,
  shape: GenerateShape,
  dtype,
  place_pool: Callable[[jax.Array], jax.Array] = lambda pool: pool,
  axis: str | None = None,
) -> Generated:
  """Answers one group's requests, `slots` at a time.

  Args:
    params: decode weights, layers unstacked (`model.unstack`).
    requests: of this group alone: no leading group axis.
    place_pool: constrains the sharding of the KV pool.
    axis: mesh axis name that other groups run along, whose loops keep step with
      this one's.

  Returns:
    `[N]` answers in request order.
  """
  engine = _Engine(
    params, cfg, shape, dtype, lambda x: x if axis is None else jax.lax.pmax(x, axis)
  )
  pool_shape = (
    cfg.num_hidden_layers * shape.num_pages,
    shape.page_size,
    2 * cfg.num_key_value_heads,
    cfg.head_dim,
  )
  pool = place_pool(jnp.zeros(pool_shape, dtype))
  pages = paging.init_pages(shape.num_pages, shape.slots, shape.pages_per_seq)

  def wave(carry, asked: Asked):
    pool, pages = carry
    alive = asked.length > 0
    need = paging.pages_needed(asked.length + shape.max_new_tokens, shape.page_size)
    pages = paging.allocate(pages, jnp.where(alive, need, 0))
    pool = _prefill(engine, pool, pages.table, asked)
    pool, out = _decode(engine, pool, pages.table, requests._replace(each=asked))
    return (pool, paging.release(pages, alive)), out

  waves = jax.tree.map(lambda x: x.reshape(-1, shape.slots, *x.shape[1:]), requests.each)
  _, out = jax.lax.scan(wave, (pool, pages), waves)
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)


def _forward(engine: _Engine, pool, table, tokens, positions, attention):
  """Runs `tokens [B, T]` through all layers, writing and reading the cache.

  `positions [B, T]` is -1 where there is no token. `table` is the page table of
  these rows; `attention(q, pool, layer_page_ids)` reads the cache back.
  """
  cfg = engine.cfg
  x = llama.embed(engine.params, tokens, engine.dtype)
  angles = llama.rope_angles(jnp.maximum(positions, 0), cfg)
  for index, weights in enumerate(engine.params["layers"]):
    ids = paging.layer_pages(table, index, engine.shape.num_pages, cfg.num_hidden_layers)

    def attend(q, k, v, pool=pool, ids=ids):
      written = paging.write(pool, ids, positions, k, v)
      return attention(q, written, ids), written

    x, pool = llama.layer(weights, x, angles, attend, cfg)
  return x, pool


def _prefill(engine: _Engine, pool, table, asked: Asked):
  """Caches all prompt tokens but the last, which is the first input of decoding."""
  shape, window = engine.shape, engine.cfg.sliding_window
  rows = min(PREFILL_ROWS, shape.slots)
  prompt_pages = paging.pages_needed(shape.prompt_tokens, shape.page_size)

  def group(first, pool):
    # The last group overlaps the one before if `rows` does not divide the slots:
    # writing a prompt's keys again writes the same values.
    start = jnp.minimum(first * rows, shape.slots - rows)
    tokens, length, pages = (
      jax.lax.dynamic_slice_in_dim(x, start, rows, 0) for x in (asked.tokens, asked.length, table)
    )

    def chunk(index, pool):
      offset = index * shape.chunk
      positions = offset + jnp.arange(shape.chunk, dtype=jnp.int32)
      positions = jnp.where(positions < length[:, None] - 1, positions, -1)
      now = jax.lax.dynamic_slice_in_dim(tokens, offset, shape.chunk, 1)

      def attention(q, pool, ids):
        return paged_prefill(q, pool, ids[:, :prompt_pages], positions, window)

      return _forward(engine, pool, pages, now, positions, attention)[1]

    chunks = engine.over_groups(ceil_div(jnp.max(length) - 1, shape.chunk))
    return jax.lax.fori_loop(0, chunks, chunk, pool)

  with jax.named_scope("prefill"):
    return jax.lax.fori_loop(0, ceil_div(shape.slots, rows), group, pool)


def _decode(engine: _Engine, pool, table, requests: Requests):
  """Decodes every slot until all have stopped or spent `max_new_tokens`."""
  cfg, shape, asked = engine.cfg, engine.shape, requests.each
  slots = shape.slots
  # Pinned: the key must not depend on the environment's default generator.
  key = jax.random.wrap_key_data(requests.seed, impl="threefry2x32")
  occupied = asked.length > 0

  def running(out: Generated):
    return occupied & (out.finish == RUNNING)

  def step(s: _Decode) -> _Decode:
    now = running(s.out)
    position = jnp.where(now, s.position, -1)

    def attention(q, pool, ids):
      return paged_attention(q[:, 0], pool, ids, position + 1, cfg.sliding_window, shape.attention)[
        :, None
      ]

    x, pool = _forward(engine, s.pool, table, s.token[:, None], position[:, None], attention)
    with jax.named_scope("sample"):
      x = llama.rms_norm(x[:, 0], engine.params["final_norm"], cfg.rms_norm_eps)
      u = uniforms(key, asked.prompt, asked.sample, s.position)
      token, logprob = choose(llama.unembed(engine.params, x), asked.sampling, u)
    column = jnp.where(now, s.out.count, shape.max_new_tokens)  # out of range: dropped
    count = s.out.count + now
    stopped = jnp.any(token[:, None] == requests.stop_ids, axis=1)
    finish = jnp.where(stopped, STOP, jnp.where(count >= shape.max_new_tokens, LENGTH, RUNNING))
    out = Generated(
      tokens=s.out.tokens.at[jnp.arange(slots), column].set(token, mode="drop"),
      count=count,
      finish=jnp.where(now, finish, s.out.finish).astype(jnp.int32),
      logprob=s.out.logprob + jnp.where(now, logprob, 0.0),
    )
    return _Decode(pool, token, s.position + now, out)

  def busy(s: _Decode):
    return engine.over_groups(jnp.any(running(s.out)))

  last = jnp.maximum(asked.length - 1, 0)
  token = jnp.take_along_axis(asked.tokens, last[:, None], axis=1)[:, 0]
  out = Generated(
    tokens=jnp.full((slots, shape.max_new_tokens), -1, jnp.int32),
    count=jnp.zeros((slots,), jnp.int32),
    finish=jnp.full((slots,), RUNNING, jnp.int32),
    logprob=jnp.zeros((slots,), jnp.float32),
  )
  with jax.named_scope("decode"):
    s = jax.lax.while_loop(busy, step, _Decode(pool, token, last, out))
  return s.pool, s.out
