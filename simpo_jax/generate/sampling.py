"""Choosing the next token: greedy, temperature, top-k, top-p, min-p, repetition penalty.

No vocabulary sort: thresholds are found by bisection.

A draw needs one uniform number per token, which depends on nothing but (seed,
prompt index, sample index, position): the same prompt gives the same tokens on
one host or four, in any slot, as far as rounding leaves the logits the same.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

BISECTIONS = 32  # halvings of the logit range: finer than a float32 step
BLOCK = 128  # vocabulary entries per block of the two-level inverse CDF


class Sampling(NamedTuple):
  """Settings of each request, arrays `[N]`."""

  temperature: jax.Array  # float32; 0 is greedy
  top_k: jax.Array  # int32; 0 is off
  top_p: jax.Array  # float32; 1 is off
  min_p: jax.Array  # float32, of the best token's probability; 0 is off
  repetition_penalty: jax.Array  # float32; 1 is off


def uniforms(key: jax.Array, prompt: jax.Array, sample: jax.Array, position: jax.Array):
  """One uniform number in [0, 1) per request, float32 `[N]`.

  Args:
    key: a typed PRNG key, of the run's generation seed.
    prompt, sample, position: int32 `[N]`.
  """

  def draw(*indices):
    folded = key
    for index in indices:
      folded = jax.random.fold_in(folded, index)
    return jax.random.uniform(folded)

  return jax.vmap(draw)(prompt, sample, position)


def choose(
  logits: jax.Array,
  sampling: Sampling,
  u: jax.Array,
  seen: jax.Array | None = None,
  sampled: bool = True,
) -> tuple[jax.Array, jax.Array]:
  """The next token of each row and its log-probability.

  Args:
    logits: float32 `[N, V]`.
    sampling: settings per row.
    u: float32 `[N]`, uniform in [0, 1).
    seen: bool `[N, V]`, tokens of the row's prompt and answer, or None when no row has
      a repetition penalty.
    sampled: False if every row is known to be greedy.

  Returns:
    int32 `[N]` tokens, and float32 `[N]`, their log-probabilities under the model
    (before penalty, temperature and truncation).
  """
  scores = logits if seen is None else penalise(logits, seen, sampling.repetition_penalty)
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


def _argmax(x):
  # Two plain reductions: several times as fast on a CPU as the one that carries the index.
  best = jnp.max(x, axis=-1, keepdims=True)
  index = jnp.arange(x.shape[-1], dtype=jnp.int32)
  # Of NaN nothing is the best; an index in range keeps the NaN visible in the log-probability.
  return jnp.min(jnp.where(x == best, index, x.shape[-1] - 1), axis=-1)


def penalise(logits: jax.Array, seen: jax.Array, penalty: jax.Array) -> jax.Array:
  """Makes tokens that were `seen` less likely (arXiv:1909.05858, section 4.1, with the
  sign handled as Hugging Face does): positive logits divided, negative multiplied."""
  penalty = penalty[:, None]
  return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)


def truncated_weights(logits: jax.Array, sampling: Sampling) -> jax.Array:
  """Unnormalised probabilities `[N, V]`, 0 outside top-k, then top-p, then min-p.

  top-k and top-p keep the logits at or above a threshold that bisection finds: the
  highest one that still keeps k entries, or a mass of p. Ties at the threshold are
  all kept. min-p (arXiv:2407.01082) keeps what has min_p times the best probability.
  """
  top_k, top_p, min_p = (x[:, None] for x in (sampling.top_k, sampling.top_p, sampling.min_p))
  peak = jnp.max(logits, axis=-1, keepdims=True)
  floor = jnp.min(logits, axis=-1, keepdims=True)
  k = jnp.where(top_k > 0, top_k, logits.shape[-1])
  kept = lambda t: jnp.sum(logits >= t, axis=-1, keepdims=True)  # noqa: E731
  weights = jnp.where(
    logits >= _bisect(lambda t: kept(t) >= k, floor, peak), jnp.exp(logits - peak), 0.0
  )
  mass = top_p * jnp.sum(weights, axis=-1, keepdims=True)

  def enough(t):
    return jnp.sum(jnp.where(logits >= t, weights, 0.0), axis=-1, keepdims=True) >= mass

  threshold = jnp.where(top_p < 1.0, _bisect(enough, floor, peak), floor)
  threshold = jnp.maximum(threshold, peak + jnp.log(min_p))  # log(0) is no bound
  return jnp.where(logits >= threshold, weights, 0.0)


def _bisect(enough, low, high):
  """The highest threshold known to be `enough`, which falls as thresholds rise."""

  def halve(_, bounds):
    low, high = bounds
    middle = low + (high - low) / 2
    good = enough(middle)
    return jnp.where(good, middle, low), jnp.where(good, high, middle)

  low, high = jax.lax.fori_loop(0, BISECTIONS, halve, (low, high))
  # The peak itself is enough for k = 1 and for a dominant token.
  return jnp.where(enough(high), high, low)


def inverse_cdf(weights: jax.Array, u: jax.Array) -> jax.Array:
  """The index where the cumulative weight first exceeds u times the total.

  Two levels (blocks, then inside the block), so that no running sum over the
  whole vocabulary is needed, and float32 sums stay accurate.

  Args:
    weights: float32 `[N, V]`, non-negative, some positive in each row.
    u: float32 `[N]`, in [0, 1).

  Returns:
    int32 `[N]`, always an index of positive weight.
  """
  N, V = weights.shape
  blocks = jnp.pad(weights, ((0, 0), (0, -V % BLOCK))).reshape(N, -1, BLOCK)

  def pick(w, target):  # first index where the running sum exceeds target
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
