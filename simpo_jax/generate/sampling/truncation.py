"""The score below which top-k and top-p leave out a token, without sorting the vocabulary.

The best scores of all shards, a few of each, mostly tell it. In rows where they do not, it is
found by bisection over all scores; no other row's result depends on that.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32

from simpo_jax.arith import ceil_div
from simpo_jax.generate.sampling.draw import weights
from simpo_jax.generate.sampling.settings import Across, Sampling, Switches
from simpo_jax.generate.sampling.vocabulary import View, total
from simpo_jax.kernels.loops import fori_loop

CANDIDATES = 64  # best scores that are looked at; more, up to the limit, if a top_k keeps more
LIMIT = 256
ROWS = 4  # rows that a pass of the bisection handles at once
_BITS = 32


def cut(
  scores: View,
  peak: Float32[Array, " B"],
  sampling: Sampling,
  switches: Switches,
  across: Across,
) -> Float32[Array, " B"]:
  """Returns the least score that top-k, then top-p keep; -inf where both are off.

  top-k (arXiv:1805.04833) keeps the k highest scores, top-p (arXiv:1904.09751) the highest
  that together have a share p of what top-k kept. Ties are all kept.
  """
  size = scores[0].size
  count = min(size, LIMIT, max(switches.top_k, CANDIDATES))
  best = _best(scores, count, across)
  hot = sampling.temperature > 0
  k = jnp.where(hot & (sampling.top_k > 0), jnp.minimum(sampling.top_k, size), 0)
  of_k = jnp.full_like(peak, -jnp.inf)
  known = jnp.ones(peak.shape, bool)
  if switches.top_k:
    at = jnp.clip(k - 1, 0, count - 1)
    of_k = jnp.where(k > 0, jnp.take_along_axis(best, at[:, None], axis=1)[:, 0], of_k)
    known = k <= count
  result = of_k
  if switches.top_p:
    p = jnp.where(hot, sampling.top_p, 1.0)
    running = jnp.cumsum(weights(best, peak, sampling.temperature, of_k), axis=1)
    whole = total(weights(scores, peak, sampling.temperature, of_k), across)
    reached = running >= (p * whole)[:, None]
    of_p = jnp.max(jnp.where(reached, best, -jnp.inf), axis=1)
    result = jnp.where(p < 1.0, jnp.maximum(of_p, of_k), of_k)
    known &= (p >= 1.0) | jnp.any(reached, axis=1) | (count == size)
  if count < size and (switches.top_p or switches.top_k > count):
    result = _search_unknown(scores, peak, sampling, k, known, result, across)
  return result


def _best(scores: View, count: int, across: Across) -> Float32[Array, "B count"]:
  """Returns the highest scores of each row, descending."""
  B, parts, blocks, block = scores.shape
  groups = math.gcd(across.vocab_shards, parts)
  shard = scores.reshape(B, groups, parts // groups * blocks, block)
  if count < shard.shape[2]:
    # They are in as many blocks, those of the highest maxima.
    _, index = jax.lax.top_k(jnp.max(shard, axis=3), count)
    shard = jnp.take_along_axis(shard, index[..., None], axis=2)
  entries = shard.reshape(B, groups, -1)
  highest, _ = jax.lax.top_k(entries, min(count, entries.shape[2]))
  if groups == 1:
    return highest[:, 0]
  return jax.lax.top_k(across.replicate(highest).reshape(B, -1), count)[0]


def _search_unknown(
  scores: View,
  peak: Float32[Array, " B"],
  sampling: Sampling,
  k: Int32[Array, " B"],
  known: Bool[Array, " B"],
  result: Float32[Array, " B"],
  across: Across,
) -> Float32[Array, " B"]:
  """Replaces the results that are not known, a few rows at a time."""
  order = jnp.argsort(known, stable=True)
  rows = min(ROWS, known.shape[0])
  unknown = across.max_over_groups(jnp.sum(~known, dtype=jnp.int32))

  def some(index: Array, result: Float32[Array, " B"]) -> Float32[Array, " B"]:
    at = jax.lax.dynamic_slice_in_dim(order, index * rows, rows)
    settings = Sampling(*(x[at] for x in sampling))
    found = _search(scores[at], peak[at], settings, k[at], across)
    return result.at[at].set(jnp.where(known[at], result[at], found))

  return fori_loop(0, ceil_div(unknown, rows), some, result)


def _search(
  scores: View,
  peak: Float32[Array, " B"],
  sampling: Sampling,
  k: Int32[Array, " B"],
  across: Across,
) -> Float32[Array, " B"]:
  """Returns what `cut` does, by bisection."""

  def at_least(t: Float32[Array, " B"]) -> Array:
    return scores >= t[:, None, None, None]

  def keeps_k(t: Float32[Array, " B"]) -> Bool[Array, " B"]:
    return jnp.sum(at_least(t), axis=(1, 2, 3)) >= k

  of_k = jnp.where(k > 0, _bisect(keeps_k, peak), -jnp.inf)
  kept = weights(scores, peak, sampling.temperature, of_k)
  mass = sampling.top_p * total(kept, across)

  def keeps_p(t: Float32[Array, " B"]) -> Bool[Array, " B"]:
    return total(jnp.where(at_least(t), kept, 0.0), across) >= mass

  return jnp.where(sampling.top_p < 1.0, _bisect(keeps_p, peak), of_k)


def _bisect(
  enough: Callable[[Float32[Array, " B"]], Bool[Array, " B"]], high: Float32[Array, " B"]
) -> Float32[Array, " B"]:
  """Returns the highest float32 up to `high` that is `enough`, which -inf must be."""

  def halve(
    _: Array, bounds: tuple[Int32[Array, " B"], Int32[Array, " B"]]
  ) -> tuple[Int32[Array, " B"], Int32[Array, " B"]]:
    low, high = bounds
    middle = (low | high) - ((low ^ high) >> 1)  # rounded up, without overflow
    good = enough(_float(middle))
    return jnp.where(good, middle, low), jnp.where(good, high, middle - 1)

  bounds = _ordinal(jnp.full_like(high, -jnp.inf)), _ordinal(high)
  return _float(fori_loop(0, _BITS, halve, bounds)[0])


def _ordinal(x: Float32[Array, " B"]) -> Int32[Array, " B"]:
  """Returns integers in the order of the floats."""
  bits = jax.lax.bitcast_convert_type(x, jnp.int32)
  return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _float(ordinal: Int32[Array, " B"]) -> Float32[Array, " B"]:
  bits = ordinal ^ ((ordinal >> 31) & 0x7FFFFFFF)
  # Subnormal numbers count as 0, as in the comparisons of most devices.
  bits = jnp.where((bits & 0x7F800000) == 0, 0, bits)
  return jax.lax.bitcast_convert_type(bits, jnp.float32)
