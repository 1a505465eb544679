"""Range attention in plain XLA: blocks of queries walk only the blocks of keys that they see.

A running softmax joins the blocks, forward and backward (FlashAttention-2,
arXiv:2307.08691): no `[S, S]` array exists, and what a packed row masks out is mostly
never computed.
"""

import functools
import math

import jax
import jax.numpy as jnp

NEGATIVE = -1e30  # a masked score: exp gives exactly 0, and no NaN arises from it
QUERY_BLOCK = 256
KEY_BLOCK = 256


def attend(
  q: jax.Array,
  k: jax.Array,
  v: jax.Array,
  k_start: jax.Array,
  k_end: jax.Array,
  positions: jax.Array,
  *,
  window: int | None = None,
) -> jax.Array:
  """See `simpo_jax.kernels.range_attention.range_attention`."""
  B, S, H, h = q.shape
  K = k.shape[2]
  q = jnp.moveaxis((q * h**-0.5).reshape(B, S, K, H // K, h), 2, 1)  # [B, K, S, G, h]
  k, v = jnp.moveaxis(k, 2, 1), jnp.moveaxis(v, 2, 1)  # [B, K, S, h]
  out = _attend(q, k, v, k_start, k_end, positions, window)
  return jnp.moveaxis(out, 1, 2).reshape(B, S, H, h)


@functools.partial(jax.custom_vjp, nondiff_argnums=(6,))
def _attend(q, k, v, k_start, k_end, positions, window):
  return _forward(q, k, v, k_start, k_end, positions, window)[0]


def _blocks(S: int) -> tuple[int, int]:
  return math.gcd(S, QUERY_BLOCK), math.gcd(S, KEY_BLOCK)


def _queries(x, i, C, axis):
  return jax.lax.dynamic_slice_in_dim(x, i * C, C, axis)


def _key_block(i, mask, S):
  """Bounds of query block i's tokens, and the first and one-past-last key blocks they see."""
  C, E = _blocks(S)
  start, end, positions = (_queries(x, i, C, 1) for x in mask)
  return start, end, positions, jnp.min(start) // E, -(-jnp.max(end) // E)


def _seen(j, start, end, positions, all_positions, E, window):
  """bool [B, 1, C, 1, E]: which keys of block j each query of the block sees."""
  keys = j * E + jnp.arange(E, dtype=jnp.int32)
  seen = (keys >= start[..., None]) & (keys < end[..., None])
  if window is not None:
    back = positions[..., None] - _queries(all_positions, j, E, 1)[:, None]
    seen &= back < window
  return seen[:, None, :, None]


def _scores(q, k, seen):
  scores = jnp.einsum("bkcgh,bkeh->bkcge", q, k, preferred_element_type=jnp.float32)
  return jnp.where(seen, scores, NEGATIVE)


def _forward(q, k, v, k_start, k_end, positions, window):
  B, K, S, G, h = q.shape
  C, E = _blocks(S)
  mask = (k_start, k_end, positions)

  def query_block(_, i):
    q_i = _queries(q, i, C, 2)
    start, end, pos, first, last = _key_block(i, mask, S)

    def key_block(j, carry):
      peak, total, acc = carry
      k_j, v_j = _queries(k, j, E, 2), _queries(v, j, E, 2)
      scores = _scores(q_i, k_j, _seen(j, start, end, pos, positions, E, window))
      new_peak = jnp.maximum(peak, jnp.max(scores, axis=-1))
      weights = jnp.exp(scores - new_peak[..., None])
      shrink = jnp.exp(peak - new_peak)
      part = jnp.einsum(
        "bkcge,bkeh->bkcgh", weights.astype(v.dtype), v_j, preferred_element_type=jnp.float32
      )
      return (new_peak, total * shrink + jnp.sum(weights, axis=-1), acc * shrink[..., None] + part)

    # A peak above NEGATIVE makes the weights of a wholly masked block 0, not 1.
    init = (
      jnp.full((B, K, C, G), NEGATIVE / 2, jnp.float32),
      jnp.zeros((B, K, C, G), jnp.float32),
      jnp.zeros((B, K, C, G, h), jnp.float32),
    )
    peak, total, acc = jax.lax.fori_loop(first, last, key_block, init)
    return None, ((acc / total[..., None]).astype(q.dtype), peak + jnp.log(total))

  _, (out, lse) = jax.lax.scan(query_block, None, jnp.arange(S // C))
  out, lse = (jnp.moveaxis(x, 0, 2).reshape(B, K, S, *x.shape[4:]) for x in (out, lse))
  return out, (q, k, v, k_start, k_end, positions, out, lse)


def _backward(window, residuals, d_out):
  q, k, v, k_start, k_end, positions, out, lse = residuals
  B, K, S, G, h = q.shape
  C, E = _blocks(S)
  mask = (k_start, k_end, positions)
  delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)

  def query_block(carry, i):
    q_i, d_out_i, lse_i, delta_i = (_queries(x, i, C, 2) for x in (q, d_out, lse, delta))
    start, end, pos, first, last = _key_block(i, mask, S)

    def key_block(j, carry):
      d_q, d_k, d_v = carry
      k_j, v_j = _queries(k, j, E, 2), _queries(v, j, E, 2)
      scores = _scores(q_i, k_j, _seen(j, start, end, pos, positions, E, window))
      weights = jnp.exp(scores - lse_i[..., None])
      d_weights = jnp.einsum("bkcgh,bkeh->bkcge", d_out_i, v_j, preferred_element_type=jnp.float32)
      d_scores = (weights * (d_weights - delta_i[..., None])).astype(q.dtype)
      weights = weights.astype(q.dtype)

      def add(total, x, y, spec):
        part = jnp.einsum(spec, x, y, preferred_element_type=jnp.float32)
        old = _queries(total, j, E, 2)
        return jax.lax.dynamic_update_slice_in_dim(total, old + part, j * E, 2)

      d_q += jnp.einsum("bkcge,bkeh->bkcgh", d_scores, k_j, preferred_element_type=jnp.float32)
      return (
        d_q,
        add(d_k, d_scores, q_i, "bkcge,bkcgh->bkeh"),
        add(d_v, weights, d_out_i, "bkcge,bkcgh->bkeh"),
      )

    d_q = jnp.zeros((B, K, C, G, h), jnp.float32)
    d_q, d_k, d_v = jax.lax.fori_loop(first, last, key_block, (d_q, *carry))
    return (d_k, d_v), d_q.astype(q.dtype)

  zeros = jnp.zeros((B, K, S, h), jnp.float32)
  (d_k, d_v), d_q = jax.lax.scan(query_block, (zeros, zeros), jnp.arange(S // C))
  d_q = jnp.moveaxis(d_q, 0, 2).reshape(q.shape)
  return d_q, d_k.astype(k.dtype), d_v.astype(v.dtype), None, None, None


_attend.defvjp(_forward, _backward)
