"""Generation of a whole prompt set inside the one program.

Prefill in fixed chunks, then a `lax.while_loop` that decodes one token for every
slot at a time over the paged KV cache. The cache is a loop carry, written in
place; nothing returns to the host until every request has its length and finish
reason.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from simpo_jax import model as llama
from simpo_jax import paging
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


class Requests(NamedTuple):
  """What to generate: arrays `[groups, N]`, N requests per group."""

  tokens: jax.Array  # int32 [groups, N, T], the prompt, padded on the right
  length: jax.Array  # int32, prompt tokens; 0 for an empty request
  prompt: jax.Array  # int32, global prompt index
  sample: jax.Array  # int32, sample index of that prompt
  sampling: Sampling  # per request
  stop_ids: jax.Array  # int32 [E], end-of-turn tokens, -1 for none; shared
  seed: jax.Array  # uint32 [2], key data; shared


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


def generate_group(
  params: llama.Params,
  requests: Requests,
  cfg: ModelConfig,
  shape: GenerateShape,
  dtype,
  place_pool: Callable[[jax.Array], jax.Array],
  axis: str | None = None,
) -> Generated:
  """Answers one group's requests, `slots` at a time.

  Args:
    params: decode weights, layers unstacked (`model.unstack`).
    requests: of this group alone: no leading group axis.
    place_pool: constrains the sharding of the KV pool.
    axis: mesh axis name that other groups run along, whose loops keep step with
      this one's.
  """
  layers, heads = cfg.num_hidden_layers, cfg.num_key_value_heads
  pool = place_pool(
    jnp.zeros((layers * shape.num_pages, shape.page_size, 2 * heads, cfg.head_dim), dtype)
  )
  pages = paging.init_pages(shape.num_pages, shape.slots, shape.pages_per_seq)
  key = jax.random.wrap_key_data(requests.seed)

  def over_groups(x):
    return x if axis is None else jax.lax.pmax(x, axis)

  def wave(carry, wave_requests):
    pool, pages = carry
    requests_now = Requests(*wave_requests, requests.stop_ids, requests.seed)
    alive = requests_now.length > 0
    need = paging.pages_needed(requests_now.length + shape.max_new_tokens, shape.page_size)
    pages = paging.allocate(pages, jnp.where(alive, need, 0))
    pool = _prefill(params, pool, pages, requests_now, cfg, shape, dtype, over_groups)
    pool, out = _decode(params, pool, pages, requests_now, cfg, shape, dtype, key, over_groups)
    pages = paging.release(pages, alive)
    return (pool, pages), out

  def waves(x):  # [N, ...] -> [waves, slots, ...]
    return x.reshape(-1, shape.slots, *x.shape[1:])

  per_request = jax.tree.map(waves, tuple(requests[:5]))
  _, out = jax.lax.scan(wave, (pool, pages), per_request)
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), out)


def _forward(params, pool, pages, tokens, positions, cfg, shape, dtype, attention):
  """Runs `tokens [B, T]` through all layers, writing and reading the cache.

  `positions [B, T]` is -1 where there is no token. `pages` is the page table of
  these rows; `attention(q, pool, layer_page_ids)` reads it back.
  """
  x = llama.embed(params, tokens, dtype)
  angles = llama.rope_angles(jnp.maximum(positions, 0), cfg)
  for index, weights in enumerate(params["layers"]):
    ids = paging.layer_pages(pages, index, shape.num_pages, cfg.num_hidden_layers)

    def attend(q, k, v, pool=pool, ids=ids):
      written = paging.write(pool, ids, positions, k, v)
      return attention(q, written, ids), written

    x, pool = llama.layer(weights, x, angles, attend, cfg)
  return x, pool


def _prefill(params, pool, pages, requests, cfg, shape, dtype, over_groups):
  """Caches all prompt tokens but the last, which is the first input of decoding."""
  rows = min(PREFILL_ROWS, shape.slots)
  prompt_pages = min(paging.pages_needed(shape.prompt_tokens, shape.page_size), shape.pages_per_seq)

  def attention(positions):
    return lambda q, pool, ids: paged_prefill(
      q, pool, ids[:, :prompt_pages], positions, cfg.sliding_window
    )

  def group(first, pool):
    # The last group overlaps the one before if `rows` does not divide the slots:
    # writing a prompt's keys again writes the same values.
    start = jnp.minimum(first * rows, shape.slots - rows)
    tokens, length, table = (
      jax.lax.dynamic_slice_in_dim(x, start, rows, 0)
      for x in (requests.tokens, requests.length, pages.table)
    )

    def chunk(index, pool):
      offset = index * shape.chunk
      positions = offset + jnp.arange(shape.chunk, dtype=jnp.int32)
      positions = jnp.where(positions < length[:, None] - 1, positions, -1)
      now = jax.lax.dynamic_slice_in_dim(tokens, offset, shape.chunk, 1)
      _, pool = _forward(
        params, pool, table, now, positions, cfg, shape, dtype, attention(positions)
      )
      return pool

    chunks = over_groups(-(-(jnp.max(length) - 1) // shape.chunk))
    return jax.lax.fori_loop(0, chunks, chunk, pool)

  with jax.named_scope("prefill"):
    return jax.lax.fori_loop(0, -(-shape.slots // rows), group, pool)


def _decode(params, pool, pages, requests, cfg, shape, dtype, key, over_groups):
  """Decodes every slot until all have stopped or spent `max_new_tokens`."""
  slots = shape.slots
  alive = requests.length > 0
  out = Generated(
    tokens=jnp.full((slots, shape.max_new_tokens), -1, jnp.int32),
    count=jnp.zeros((slots,), jnp.int32),
    finish=jnp.where(alive, RUNNING, LENGTH).astype(jnp.int32),
    logprob=jnp.zeros((slots,), jnp.float32),
  )
  last = jnp.maximum(requests.length - 1, 0)
  token = jnp.take_along_axis(requests.tokens, last[:, None], axis=1)[:, 0]

  def step(s: _Decode) -> _Decode:
    running = s.out.finish == RUNNING
    position = jnp.where(running, s.position, -1)
    attention = lambda q, pool, ids: paged_attention(  # noqa: E731
      q[:, 0], pool, ids, position + 1, cfg.sliding_window, shape.attention
    )[:, None]
    x, pool = _forward(
      params, s.pool, pages.table, s.token[:, None], position[:, None], cfg, shape, dtype, attention
    )
    with jax.named_scope("sample"):
      x = llama.rms_norm(x[:, 0], params["final_norm"], cfg.rms_norm_eps)
      u = uniforms(key, requests.prompt, requests.sample, s.position)
      token, logprob = choose(llama.unembed(params, x), requests.sampling, u)
    column = jnp.where(running, s.out.count, shape.max_new_tokens)  # out of range: dropped
    count = s.out.count + running
    stopped = jnp.any(token[:, None] == requests.stop_ids, axis=1)
    finish = jnp.where(stopped, STOP, jnp.where(count >= shape.max_new_tokens, LENGTH, RUNNING))
    out = Generated(
      tokens=s.out.tokens.at[jnp.arange(slots), column].set(token, mode="drop"),
      count=count,
      finish=jnp.where(running, finish, s.out.finish).astype(jnp.int32),
      logprob=s.out.logprob + jnp.where(running, logprob, 0.0),
    )
    return _Decode(pool, token, s.position + running, out)

  def busy(s: _Decode):
    return over_groups(jnp.any(s.out.finish == RUNNING))

  with jax.named_scope("decode"):
    s = jax.lax.while_loop(busy, step, _Decode(pool, token, last, out))
  empty = jnp.where(alive, s.out.finish, RUNNING)
  return s.pool, s.out._replace(finish=empty)
