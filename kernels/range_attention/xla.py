"""Range attention in plain XLA: each block of queries iterates over the blocks of keys it sees.

An online softmax combines the blocks, forward and backward (FlashAttention-2,
arXiv:2307.08691): no `[S, S]` array exists, and most of what a packed row masks out is
never computed.

Scores are laid out with the keys first, `[B, K, E, G, C]`, for a block of E keys and C queries
with G query heads per KV head. In this layout no matmul, forward or backward, contracts over
the first axis of its left operand, for which a CPU would transpose a block of scores each time.
In matmuls G and C are merged into one axis, GC, because XLA for CPU transposes to contract over
two axes.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax import ad_checkpoint
from jaxtyping import Array, Bool, Float, Float32, Int32

from simpo_jax.arith import ceil_div
from simpo_jax.kernels.loops import fori_loop
from simpo_jax.kernels.range_attention import RESIDUALS

NEGATIVE = -1e30  # a masked score: finite, so that no NaN arises, but its exp is exactly 0
QUERY_BLOCK = 256
KEY_BLOCK = 256

Window = int | Int32[Array, ""] | None
Mask = tuple[Array, Array, Array]  # k_start, k_end, positions
Sums = tuple[Array, Array, Array]  # accumulators of the loop over key blocks
# q, k, v, the mask, the window, the output, the log-sum-exp of each query's scores
Residuals = tuple[Array, Array, Array, Array, Array, Array, Window, Array, Array]


def attend(
  q: Float[Array, "B S H h"],
  k: Float[Array, "B S K h"],
  v: Float[Array, "B S K h"],
  k_start: Int32[Array, "B S"],
  k_end: Int32[Array, "B S"],
  positions: Int32[Array, "B S"],
  *,
  window: int | Int32[Array, ""] | None = None,
  soft_cap: float | None = None,
) -> Float[Array, "B S H h"]:
  """See `simpo_jax.kernels.range_attention.range_attention`."""
  B, S, H, h = q.shape
  K = k.shape[2]
  q = (q * h**-0.5).reshape(B, S, K, H // K, h)
  out: Array = _attend(q, k, v, k_start, k_end, positions, window, soft_cap)
  return out.reshape(B, S, H, h)


@functools.partial(jax.custom_vjp, nondiff_argnums=(7,))
def _attend(
  q: Float[Array, "B S K G h"],
  k: Float[Array, "B S K h"],
  v: Float[Array, "B S K h"],
  k_start: Int32[Array, "B S"],
  k_end: Int32[Array, "B S"],
  positions: Int32[Array, "B S"],
  window: Window,
  soft_cap: float | None,
) -> Float[Array, "B S K G h"]:
  return _forward(q, k, v, k_start, k_end, positions, window, soft_cap)[0]


def _blocks(S: int) -> tuple[int, int]:
  return math.gcd(S, QUERY_BLOCK), math.gcd(S, KEY_BLOCK)


def _block(x: Array, i: Array, size: int, axis: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, i * size, size, axis)


def _flat(x: Array, axis: int) -> Array:
  """Reshapes `[..., G, C, ...]`, with G at `axis`, to `[..., GC, ...]`."""
  return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _queries(x: Array, i: Array, C: int, axis: int) -> Array:
  """Query block i, `[..., GC, ...]`, of `[..., G, S, ...]` with G at `axis`."""
  return _flat(_block(x, i, C, axis + 1), axis)


def _key_blocks(i: Array, mask: Mask, S: int) -> tuple[Array, Array, Array, Array, Array]:
  """The mask of query block i, and the first and one-past-last key blocks that it sees."""
  C, E = _blocks(S)
  start, end, positions = (_block(x, i, C, 1) for x in mask)
  return start, end, positions, jnp.min(start) // E, ceil_div(jnp.max(end), E)


def _seen(
  j: Array,
  start: Int32[Array, "B C"],
  end: Int32[Array, "B C"],
  positions: Int32[Array, "B C"],
  all_positions: Int32[Array, "B S"],
  E: int,
  window: Window,
) -> Bool[Array, "B 1 E 1 C"]:
  """Which keys of key block j each query of a query block sees."""
  keys = (j * E + jnp.arange(E, dtype=jnp.int32))[:, None]
  seen = (keys >= start[:, None]) & (keys < end[:, None])
  if window is not None:
    seen &= positions[:, None] - _block(all_positions, j, E, 1)[..., None] < window
  return seen[:, None, :, None]


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _scores(
  k: Float[Array, "B K E h"],
  q: Float[Array, "B K h GC"],
  seen: Bool[Array, "B 1 E 1 C"],
  soft_cap: float | None,
) -> Float32[Array, "B K E G C"]:
  scores = _grouped(_dot("bkeh,bkhn->bken", k, q), seen.shape[-1])
  if soft_cap is not None:
    scores = soft_cap * jnp.tanh(scores / soft_cap)
  return jnp.where(seen, scores, NEGATIVE)


def _grouped(x: Float[Array, "*other GC"], C: int) -> Float[Array, "*other G C"]:
  return x.reshape(*x.shape[:-1], -1, C)


def _forward(
  q: Float[Array, "B S K G h"],
  k: Float[Array, "B S K h"],
  v: Float[Array, "B S K h"],
  k_start: Int32[Array, "B S"],
  k_end: Int32[Array, "B S"],
  positions: Int32[Array, "B S"],
  window: Window,
  soft_cap: float | None,
) -> tuple[Float[Array, "B S K G h"], Residuals]:
  B, S, K, G, h = q.shape
  C, E = _blocks(S)
  mask = (k_start, k_end, positions)
  all_q = q.transpose(0, 2, 4, 3, 1)  # [B, K, h, G, S]
  all_k, all_v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 3, 1)  # [B, K, S, h], [B, K, h, S]

  def query_block(_: None, i: Array) -> tuple[None, tuple[Array, Array]]:
    q_i = _queries(all_q, i, C, 3)
    start, end, pos, first, last = _key_blocks(i, mask, S)

    def key_block(j: Array, sums: Sums) -> Sums:
      peak, total, acc = sums
      seen = _seen(j, start, end, pos, positions, E, window)
      scores = _scores(_block(all_k, j, E, 2), q_i, seen, soft_cap)
      new_peak = jnp.maximum(peak, jnp.max(scores, axis=2))
      weights = jnp.exp(scores - new_peak[:, :, None])
      shrink = jnp.exp(peak - new_peak)
      flat = _flat(weights.astype(v.dtype), 3)
      part = _grouped(_dot("bkhe,bken->bkhn", _block(all_v, j, E, 3), flat), C)
      total = total * shrink + jnp.sum(weights, axis=2)
      return new_peak, total, acc * shrink[:, :, None] + part

    # The initial peak is above NEGATIVE, so that a fully masked block has weights 0, not 1.
    init = (
      jnp.full((B, K, G, C), NEGATIVE / 2, jnp.float32),
      jnp.zeros((B, K, G, C), jnp.float32),
      jnp.zeros((B, K, h, G, C), jnp.float32),
    )
    peak, total, acc = fori_loop(first, last, key_block, init)
    return None, ((acc / total[:, :, None]).astype(q.dtype), peak + jnp.log(total))

  _, (out, lse) = jax.lax.scan(query_block, None, jnp.arange(S // C))
  out, lse = (ad_checkpoint.checkpoint_name(x, RESIDUALS) for x in (_rows(out), lse))
  return out, (q, k, v, k_start, k_end, positions, window, out, lse)


def _rows(blocks: Float[Array, "blocks B K h G C"]) -> Float[Array, "B S K G h"]:
  n, B, K, h, G, C = blocks.shape
  return blocks.transpose(1, 0, 5, 2, 4, 3).reshape(B, n * C, K, G, h)


def _backward(
  soft_cap: float | None, residuals: Residuals, d_out: Float[Array, "B S K G h"]
) -> tuple[Array, Array, Array, None, None, None, None]:
  q, k, v, k_start, k_end, positions, window, out, lse = residuals
  B, S, K, G, h = q.shape
  C, E = _blocks(S)
  mask = (k_start, k_end, positions)
  delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
  delta = delta.transpose(0, 2, 3, 1)  # [B, K, G, S]
  # Each operand in the layout that its matmuls need.
  q_last, d_out_last = (x.transpose(0, 2, 4, 3, 1) for x in (q, d_out))  # [B, K, h, G, S]
  q, d_out = (x.transpose(0, 2, 3, 1, 4) for x in (q, d_out))  # [B, K, G, S, h]
  k_last = k.transpose(0, 2, 3, 1)  # [B, K, h, S]
  k, v = (x.swapaxes(1, 2) for x in (k, v))  # [B, K, S, h]

  def query_block(carry: tuple[Array, Array], i: Array) -> tuple[tuple[Array, Array], Array]:
    q_i, d_out_i = (_queries(x, i, C, 2) for x in (q, d_out))
    delta_i = _block(delta, i, C, 3)[:, :, None]
    q_last_i, d_out_last_i = (_queries(x, i, C, 3) for x in (q_last, d_out_last))
    start, end, pos, first, last = _key_blocks(i, mask, S)

    def key_block(j: Array, sums: Sums) -> Sums:
      d_q, d_k, d_v = sums
      seen = _seen(j, start, end, pos, positions, E, window)
      scores = _scores(_block(k, j, E, 2), q_last_i, seen, soft_cap)
      weights = jnp.exp(scores - lse[i][:, :, None])
      d_weights = _grouped(_dot("bkeh,bkhn->bken", _block(v, j, E, 2), d_out_last_i), C)
      d_scores = weights * (d_weights - delta_i)
      if soft_cap is not None:
        d_scores *= jnp.where(seen, 1 - (scores / soft_cap) ** 2, 0)  # NEGATIVE squared is inf
      d_scores = _flat(d_scores.astype(q.dtype), 3)

      def add(total: Array, x: Array, y: Array) -> Array:
        part = _dot("bken,bknh->bkeh", x, y)
        return jax.lax.dynamic_update_slice_in_dim(
          total, _block(total, j, E, 2) + part, j * E, axis=2
        )

      return (
        d_q + _dot("bkhe,bken->bkhn", _block(k_last, j, E, 3), d_scores),
        add(d_k, d_scores, q_i),
        add(d_v, _flat(weights.astype(q.dtype), 3), d_out_i),
      )

    d_q = jnp.zeros((B, K, h, G * C), jnp.float32)
    d_q, d_k, d_v = fori_loop(first, last, key_block, (d_q, *carry))
    return (d_k, d_v), _grouped(d_q, C).astype(q.dtype)

  zeros = jnp.zeros((B, K, S, h), jnp.float32)
  (d_k, d_v), d_q = jax.lax.scan(query_block, (zeros, zeros), jnp.arange(S // C))
  d_k, d_v = (x.swapaxes(1, 2).astype(k.dtype) for x in (d_k, d_v))
  return _rows(d_q), d_k, d_v, None, None, None, None


_attend.defvjp(_forward, _backward)
