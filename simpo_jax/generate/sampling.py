"""Sampling of the next token: greedy, temperature, top-k, top-p, min-p, repetition penalty.

The vocabulary is never sorted: thresholds are found by bisection.

Each token is drawn with one uniform number, which depends only on (seed, prompt index,
sample index, position). The same prompt therefore gives the same tokens on any number of
hosts and in any slot, up to rounding differences in the logits.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, Key

from simpo_jax.kernels.loops import fori_loop

BISECTIONS = 32  # halvings of the logit range: finer than float32 resolution
BLOCK = 128  # vocabulary entries per block of the two-level inverse CDF


class Sampling(NamedTuple):
  """Sampling settings of each request, or of the request in each row of a decode step."""

  temperature: Float32[Array, "*rows"]  # logits are divided by it; 0 is greedy
  top_k: Int32[Array, "*rows"]  # 0 is off
  top_p: Float32[Array, "*rows"]  # 1 is off
  min_p: Float32[Array, "*rows"]  # relative to the most likely token's probability; 0 is off
  repetition_penalty: Float32[Array, "*rows"]  # 1 is off


def uniforms(
  key: Key[Array, ""],
  prompt: Int32[Array, " B"],
  sample: Int32[Array, " B"],
  position: Int32[Array, " B"],
) -> Float32[Array, " B"]:
  """Returns one uniform number in [0, 1) per row.

  Args:
    key: the key of the run's generation seed.
    prompt: index of the row's prompt.
    sample: index among the samples of that prompt.
    position: position in the sequence of the token before the one to draw.
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
  banned: Bool[Array, "B V"] | None = None,
) -> tuple[Int32[Array, " B"], Float32[Array, " B"]]:
  """Chooses the next token of each row.

  Args:
    logits: the model's logits.
    sampling: settings of each row.
    u: uniform in [0, 1), from `uniforms`.
    seen: which tokens occur in each row's prompt or answer; None if no row has a
      repetition penalty.
    sampled: False if every row is known to be greedy.
    banned: which tokens may not be chosen, not all of a row; None if any may.

  Returns:
    The tokens, and their natural log-probabilities under the model itself: before
    penalty, suppression, temperature and truncation. They are NaN where logits are NaN.
  """
  scores = logits if seen is None else penalize(logits, seen, sampling.repetition_penalty)
  if banned is not None:
    scores = jnp.where(banned, -jnp.inf, scores)
  greedy = _argmax(scores)

  tokens = greedy
  # Not a `lax.cond` on the rows: hosts could take different branches, and sampling from a
  # sharded vocabulary contains collectives.
  if sampled:
    hot = sampling.temperature > 0
    scaled = scores / jnp.where(hot, sampling.temperature, 1.0)[:, None]
    tokens = jnp.where(hot, inverse_cdf(truncated_weights(scaled, sampling, banned), u), greedy)
  chosen = jnp.take_along_axis(logits, tokens[:, None], axis=-1)[:, 0]
  return tokens, chosen - jax.nn.logsumexp(logits, axis=-1)


def _argmax(x: Float32[Array, "B V"]) -> Int32[Array, " B"]:
  # Two plain reductions are several times as fast on a CPU as jnp.argmax.
  best = jnp.max(x, axis=-1, keepdims=True)
  index = jnp.arange(x.shape[-1], dtype=jnp.int32)
  # With NaN logits no entry equals the maximum: return a valid index, whose log-probability
  # is NaN.
  return jnp.min(jnp.where(x == best, index, x.shape[-1] - 1), axis=-1)


def penalize(
  logits: Float32[Array, "B V"], seen: Bool[Array, "B V"], penalty: Float32[Array, " B"]
) -> Float32[Array, "B V"]:
  """Applies the repetition penalty to the logits of `seen` tokens.

  Positive logits are divided by the penalty and negative ones multiplied, as in Hugging
  Face's generate; the paper divides both (CTRL, arXiv:1909.05858, section 4.1).
  """
  penalty = penalty[:, None]
  return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def truncated_weights(
  logits: Float32[Array, "B V"], sampling: Sampling, banned: Bool[Array, "B V"] | None = None
) -> Float32[Array, "B V"]:
  """Returns unnormalized probabilities after top-k, then top-p, then min-p.

  top-k (arXiv:1805.04833) and top-p (arXiv:1904.09751) keep the logits at or above a
  threshold found by bisection: the highest one that keeps k entries, or a mass of p.
  Ties at the threshold are all kept. min-p (arXiv:2407.01082) keeps tokens with at
  least min_p times the highest probability.

  Args:
    logits: already divided by the temperature.
    sampling: settings of each row.
    banned: which logits are -inf; None if none is.
  """
  top_k, top_p, min_p = (x[:, None] for x in (sampling.top_k, sampling.top_p, sampling.min_p))
  peak = jnp.max(logits, axis=-1, keepdims=True)
  # The bisection needs a finite lower bound.
  lowest = logits if banned is None else jnp.where(banned, jnp.inf, logits)
  floor = jnp.min(lowest, axis=-1, keepdims=True)
  k = jnp.where(top_k > 0, top_k, logits.shape[-1])

  def keeps_k(t: Float32[Array, "B 1"]) -> Bool[Array, "B 1"]:
    return jnp.sum(logits >= t, axis=-1, keepdims=True) >= k

  weights = jnp.where(logits >= _bisect(keeps_k, floor, peak), jnp.exp(logits - peak), 0.0)
  mass = top_p * jnp.sum(weights, axis=-1, keepdims=True)

  def keeps_p(t: Float32[Array, "B 1"]) -> Bool[Array, "B 1"]:
    return jnp.sum(jnp.where(logits >= t, weights, 0.0), axis=-1, keepdims=True) >= mass

  threshold = jnp.where(top_p < 1.0, _bisect(keeps_p, floor, peak), floor)
  threshold = jnp.maximum(threshold, peak + jnp.log(min_p))  # log(0) = -inf: no effect
  return jnp.where(logits >= threshold, weights, 0.0)


def _bisect(
  enough: Callable[[Array], Array], low: Float32[Array, "B 1"], high: Float32[Array, "B 1"]
) -> Float32[Array, "B 1"]:
  """Bisects for the highest threshold that is `enough`.

  `enough` must be monotonic (true below the threshold, false above) and true for `low`.
  """

  def halve(_: Array, bounds: tuple[Array, Array]) -> tuple[Array, Array]:
    low, high = bounds
    middle = low + (high - low) / 2
    good = enough(middle)
    return jnp.where(good, middle, low), jnp.where(good, high, middle)

  low, high = fori_loop(0, BISECTIONS, halve, (low, high))
  # `high` itself may be enough: for k = 1, or for a dominant token.
  return jnp.where(enough(high), high, low)


def inverse_cdf(weights: Float32[Array, "B V"], u: Float32[Array, " B"]) -> Int32[Array, " B"]:
  """Returns the first index where the cumulative weight exceeds u times the total.

  Works on two levels (blocks, then entries of the block), so that no cumulative sum over
  the entire vocabulary is needed, and float32 sums stay accurate.

  Args:
    weights: non-negative, at least one positive per row.
    u: in [0, 1).

  Returns:
    Indices, always of positive weights.
  """
  B, V = weights.shape
  blocks = jnp.pad(weights, ((0, 0), (0, -V % BLOCK))).reshape(B, -1, BLOCK)

  def pick(
    w: Float32[Array, "B entries"], target: Float32[Array, " B"]
  ) -> tuple[Int32[Array, " B"], Float32[Array, " B"]]:
    """The first index where the running sum exceeds `target`, and the rest of `target` there."""
    running = jnp.cumsum(w, axis=-1)
    index = jnp.sum(running <= target[:, None], axis=-1)
    last = w.shape[-1] - 1 - jnp.argmax((w > 0)[:, ::-1], axis=-1)
    index = jnp.minimum(index, last)  # rounding may push the target past the end
    before = jnp.take_along_axis(running - w, index[:, None], axis=-1)[:, 0]
    return index, target - before

  sums = jnp.sum(blocks, axis=-1)
  block, rest = pick(sums, u * jnp.sum(sums, axis=-1))
  # Rounding can make the rest negative; the block's first entries may have weight 0.
  rest = jnp.maximum(rest, 0.0)
  inside = jnp.take_along_axis(blocks, block[:, None, None], axis=1)[:, 0]
  index, _ = pick(inside, rest)
  return (block * BLOCK + index).astype(jnp.int32)
