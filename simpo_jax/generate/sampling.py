"""Choosing the next token: greedy, temperature, top-k, top-p, min-p, repetition penalty.

No vocabulary sort: thresholds are found by bisection.

A draw needs one uniform number per token, which depends on nothing but (seed,
prompt index, sample index, position): the same prompt gives the same tokens on
one host or four, in any slot, as far as rounding leaves the logits the same.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, Key

from simpo_jax.kernels.loops import fori_loop

BISECTIONS = 32  # halvings of the logit range: finer than a float32 step
BLOCK = 128  # vocabulary entries per block of the two-level inverse CDF


class Sampling(NamedTuple):
  """Settings of each request, or of the request in each row of a decode step."""

  temperature: Float32[Array, "*rows"]  # logits are divided by it; 0 is greedy
  top_k: Int32[Array, "*rows"]  # 0 is off
  top_p: Float32[Array, "*rows"]  # 1 is off
  min_p: Float32[Array, "*rows"]  # as a part of the best token's probability; 0 is off
  repetition_penalty: Float32[Array, "*rows"]  # 1 is off


def uniforms(
  key: Key[Array, ""],
  prompt: Int32[Array, " B"],
  sample: Int32[Array, " B"],
  position: Int32[Array, " B"],
) -> Float32[Array, " B"]:
  """One uniform number in [0, 1) per row.

  Args:
    key: of the run's generation seed.
    prompt: index of the row's prompt.
    sample: index among the samples of that prompt.
    position: in the sequence, of the token before the one to be drawn.
  """

  def draw(*indices: Int32[Array, ""]) -> Float32[Array, ""]:
    folded = key
    for index in indices:
      folded = jax.random.fold_in(folded, index)
    return jax.random.uniform(folded)

  return jax.vmap(draw)(prompt, sample, position)


def choose(
  logits: Float32[Array, "B V"],
  sampling: Sampling,
  u: Float32[Array, " B"],
  seen: Bool[Array, "B V"] | None = None,
  sampled: bool = True,
) -> tuple[Int32[Array, " B"], Float32[Array, " B"]]:
  """The next token of each row and its log-probability.

  Args:
    logits: of the model.
    sampling: settings of each row.
    u: uniform in [0, 1), from `uniforms`.
    seen: the tokens of each row's prompt and answer; None if no row has a repetition
      penalty.
    sampled: False if every row is known to be greedy.

  Returns:
    The tokens, and their natural log-probabilities under the model itself: before
    penalty, temperature and truncation. Where logits are NaN, so are these.
  """
  scores = logits if seen is None else penalize(logits, seen, sampling.repetition_penalty)
  greedy = _argmax(scores)

  tokens = greedy
  # Not a `lax.cond` on the rows: hosts would differ in it, and a draw over a sharded
  # vocabulary has collectives.
  if sampled:
    hot = sampling.temperature > 0
    scaled = scores / jnp.where(hot, sampling.temperature, 1.0)[:, None]
    tokens = jnp.where(hot, inverse_cdf(truncated_weights(scaled, sampling), u), greedy)
  chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
  return tokens, chosen - jax.nn.logsumexp(logits, axis=-1)


def _argmax(x: Float32[Array, "B V"]) -> Int32[Array, " B"]:
  # Two plain reductions: several times as fast on a CPU as the one that carries the index.
  best = jnp.max(x, axis=-1, keepdims=True)
  index = jnp.arange(x.shape[-1], dtype=jnp.int32)
  # Of NaN nothing is the best; an index in range keeps the NaN visible in the log-probability.
  return jnp.min(jnp.where(x == best, index, x.shape[-1] - 1), axis=-1)


def penalize(
  logits: Float32[Array, "B V"], seen: Bool[Array, "B V"], penalty: Float32[Array, " B"]
) -> Float32[Array, "B V"]:
  """Makes tokens that were `seen` less likely, if the row's `penalty` is above 1.

  Positive logits are divided by it and negative ones multiplied, as Hugging Face does;
  the paper divides both (CTRL, arXiv:1909.05858, section 4.1).
  """
  penalty = penalty[:, None]
  return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def truncated_weights(logits: Float32[Array, "B V"], sampling: Sampling) -> Float32[Array, "B V"]:
  """Unnormalized probabilities, 0 outside top-k, then top-p, then min-p.

  top-k (arXiv:1805.04833) and top-p (arXiv:1904.09751) keep the logits at or above a
  threshold that bisection finds: the highest one that still keeps k entries, or a mass
  of p. Ties at the threshold are all kept. min-p (arXiv:2407.01082) keeps what has at
  least min_p times the best probability.

  Args:
    logits: already divided by the temperature.
    sampling: settings of each row.
  """
  top_k, top_p, min_p = (x[:, None] for x in (sampling.top_k, sampling.top_p, sampling.min_p))
  peak = jnp.max(logits, axis=-1, keepdims=True)
  floor = jnp.min(logits, axis=-1, keepdims=True)
  k = jnp.where(top_k > 0, top_k, logits.shape[-1])

  def keeps_k(t: Float32[Array, "B 1"]) -> Bool[Array, "B 1"]:
    return jnp.sum(logits >= t, axis=-1, keepdims=True) >= k

  weights = jnp.where(logits >= _bisect(keeps_k, floor, peak), jnp.exp(logits - peak), 0.0)
  mass = top_p * jnp.sum(weights, axis=-1, keepdims=True)

  def keeps_p(t: Float32[Array, "B 1"]) -> Bool[Array, "B 1"]:
    return jnp.sum(jnp.where(logits >= t, weights, 0.0), axis=-1, keepdims=True) >= mass

  threshold = jnp.where(top_p < 1.0, _bisect(keeps_p, floor, peak), floor)
  threshold = jnp.maximum(threshold, peak + jnp.log(min_p))  # log(0) is no bound
  return jnp.where(logits >= threshold, weights, 0.0)


def _bisect(
  enough: Callable[[Array], Array], low: Float32[Array, "B 1"], high: Float32[Array, "B 1"]
) -> Float32[Array, "B 1"]:
  """The highest threshold found to be `enough`, which `low` is, as is all below one that is."""

  def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = bounds
    middle = low + (high - low) / 2
    good = enough(middle)
    return jnp.where(good, middle, low), jnp.where(good, high, middle)

  low, high = fori_loop(0, BISECTIONS, halve, (low, high))
  # The peak itself is enough for k = 1 and for a dominant token.
  return jnp.where(enough(high), high, low)


def inverse_cdf(weights: Float32[Array, "B V"], u: Float32[Array, " B"]) -> Int32[Array, " B"]:
  """The index where the cumulative weight first exceeds u times the total.

  Two levels (blocks, then inside the block), so that no running sum over the
  whole vocabulary is needed, and float32 sums stay accurate.

  Args:
    weights: non-negative, some positive in each row.
    u: in [0, 1).

  Returns:
    Always an index of positive weight.
  """
  B, V = weights.shape
  blocks = jnp.pad(weights, ((0, 0), (0, -V % BLOCK))).reshape(B, -1, BLOCK)

  def pick(
    w: Float32[Array, "B entries"], target: Float32[Array, " B"]
  ) -> tuple[Int32[Array, " B"], Float32[Array, " B"]]:
    """The first index where the running sum exceeds `target`, and what of it is left there."""
    running = jnp.cumsum(w, axis=-1)
    index = jnp.sum(running <= target[:, None], axis=-1)
    last = w.shape[-1] - 1 - jnp.argmax((w > 0)[:, ::-1], axis=-1)
    index = jnp.minimum(index, last)  # rounding may push the target past the end
    before = jnp.take_along_axis(running - w, index[:, None], axis=-1)[:, 0]
    return index, target - before

  sums = jnp.sum(blocks, axis=-1)
  block, rest = pick(sums, u * jnp.sum(sums, axis=-1))
  # Rounding can put the target before its block, whose first entries may weigh nothing.
  rest = jnp.maximum(rest, 0.0)
  inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
  index, _ = pick(inside, rest)
  return (block * BLOCK + index).astype(jnp.int32)
