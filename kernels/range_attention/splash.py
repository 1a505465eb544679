"""JAX's splash attention with a mask given by two integers per token.

Splash attention iterates over a grid of blocks. A table in scalar memory says which blocks
to compute and which to fetch next, and a function computes the mask inside a block. For a
mask that changes from step to step, splash attention itself would need the dense `[S, S]` mask,
from which it cannot build the table under `jit`. This module builds the table from `k_start` and
`k_end` instead.

Every token sees itself, so the keys that a block of queries sees together have no gaps: the
smallest `k_start` and the largest `k_end` of the block determine exactly which blocks of keys
it needs.
"""

import math
from collections.abc import Callable
from typing import cast

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import BlockSizes
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_kernel import (
  DEFAULT_MASK_VALUE,
  SplashAttentionKernel,
)
from jax.experimental.pallas.ops.tpu.splash_attention.splash_attention_mask_info import MaskInfo
from jaxtyping import Array, Bool, Float, Int32

from simpo_jax.arith import ceil_div
from simpo_jax.kernels.range_attention import RESIDUALS

LANES = 128
QUERY_BLOCK, KEY_BLOCK = 1024, 1024  # large, since each grid step has a high overhead
COMPUTE_BLOCK = 512  # keys whose scores are computed at once


def attend(
  q: Float[Array, "B S H h"],
  k: Float[Array, "B S K h"],
  v: Float[Array, "B S K h"],
  k_start: Int32[Array, "B S"],
  k_end: Int32[Array, "B S"],
  *,
  soft_cap: float | None,
  interpret: bool,
) -> Float[Array, "B S H h"]:
  """Range attention without a sliding window."""
  B, S, H, h = q.shape
  K = k.shape[2]
  blocks = _block_sizes(S, h)

  def row(
    q: Float[Array, "K G S h"],
    k: Float[Array, "K S h"],
    v: Float[Array, "K S h"],
    k_start: Int32[Array, " S"],
    k_end: Int32[Array, " S"],
  ) -> Float[Array, "K G S h"]:
    spans = k_start << 16 | k_end
    active = seen_blocks(k_start, k_end, blocks.block_q, blocks.block_kv)
    by_query, by_key = (
      MaskInfo(
        data_next=_fetched(active, axis)[None],
        mask_next=None,
        block_mask=active.astype(jnp.int32)[None],
        partial_mask_blocks=None,
        q_sequence=spans,  # pyright: ignore[reportArgumentType]  # accepts tracers
      )
      for axis in (1, 0)
    )
    kernel = SplashAttentionKernel(
      by_query,
      by_query,
      by_key,
      block_sizes=blocks,
      is_mqa=True,
      save_residuals=False,
      mask_value=DEFAULT_MASK_VALUE,
      attn_logits_soft_cap=soft_cap,
      residual_checkpoint_name=RESIDUALS,
      mask_function=_sees,
      interpret=interpret,
    )
    # The declared type includes the result with save_residuals.
    attend = cast(Callable[[Array, Array, Array], Array], kernel)
    # vmap over KV heads adds a grid axis, the only one that the backward kernels can split
    # over both cores of a v5p chip.
    return jax.vmap(attend)(q, k, v)

  q = (q * h**-0.5).reshape(B, S, K, H // K, h).transpose(0, 2, 3, 1, 4)  # [B, K, G, S, h]
  k, v = k.swapaxes(1, 2), v.swapaxes(1, 2)  # [B, K, S, h]
  out = jax.vmap(row)(q, k, v, k_start, k_end)
  return out.transpose(0, 3, 1, 2, 4).reshape(B, S, H, h)


def seen_blocks(
  k_start: Int32[Array, " S"], k_end: Int32[Array, " S"], queries: int, keys: int
) -> Bool[Array, "query_blocks key_blocks"]:
  """Returns which blocks contain a query and a key that it sees.

  Args:
    queries, keys: block sizes, which divide S.
  """
  first = jnp.min(k_start.reshape(-1, queries), axis=1, keepdims=True)
  end = jnp.max(k_end.reshape(-1, queries), axis=1, keepdims=True)
  begin = jnp.arange(0, k_start.shape[0], keys, dtype=jnp.int32)
  return (begin + keys > first) & (begin < end)


def _fetched(
  active: Bool[Array, "query_blocks key_blocks"], axis: int
) -> Int32[Array, "query_blocks key_blocks"]:
  """The block to have in memory at each step along `axis`: the next active one.

  After the last active block it stays the same, so that nothing is fetched needlessly.
  """
  i = jax.lax.broadcasted_iota(jnp.int32, active.shape, axis)
  due = jnp.where(active, i, active.shape[axis])
  last = jnp.max(jnp.where(active, i, 0), axis=axis, keepdims=True)
  return jnp.minimum(jax.lax.cummin(due, axis=axis, reverse=True), last)


def _sees(span: Array, key: Array) -> Array:
  """The mask function: whether a query with `k_start << 16 | k_end` sees a key."""
  return (key >= span >> 16) & (key < span & 0xFFFF)


def _block_sizes(S: int, h: int) -> BlockSizes:
  # Fewer queries for wide heads (Gemma 2), so that the backward pass fits into VMEM.
  queries = QUERY_BLOCK >> (ceil_div(h, LANES) - 1).bit_length()
  queries, keys = math.gcd(S, queries), math.gcd(S, KEY_BLOCK)
  compute = math.gcd(S, COMPUTE_BLOCK)
  return BlockSizes(
    block_q=queries,
    block_kv=keys,
    block_kv_compute=compute,
    block_q_dkv=queries,
    block_kv_dkv=keys,
    block_kv_dkv_compute=compute,
    block_q_dq=queries,
    block_kv_dq=keys,
  )
