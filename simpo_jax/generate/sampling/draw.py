"""Drawing a place of the vocabulary in proportion to weights, in three steps."""

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from simpo_jax.generate.sampling.settings import Across
from simpo_jax.generate.sampling.vocabulary import Place, View


def weights(
  scores: Float32[Array, "B ..."],
  peak: Float32[Array, " B"],
  temperature: Float32[Array, " B"],
  threshold: Float32[Array, " B"],
) -> Float32[Array, "B ..."]:
  """Returns unnormalized probabilities: 1 at the row's `peak`, 0 below its `threshold`.

  With temperature 0, they are those of temperature 1.
  """

  def by_row(x: Float32[Array, " B"]) -> Array:
    return x.reshape(-1, *[1] * (scores.ndim - 1))

  # The difference first: a quotient may overflow.
  below = (scores - by_row(peak)) / by_row(jnp.where(temperature > 0, temperature, 1.0))
  return jnp.where(scores >= by_row(threshold), jnp.exp(below), 0.0)


def pick(w: Float32[Array, "B places"], u: Float32[Array, " B"]) -> Int32[Array, " B"]:
  """Returns the least place of positive weight whose running sum exceeds u times the total.

  A float32 running sum need not be monotone, nor pass the target at all: then it is the last
  place of positive weight.

  Args:
    w: not negative.
    u: in [0, 1).

  Returns:
    Places of positive weight, in rows that have one; else 0.
  """
  running = jnp.cumsum(w, axis=-1)
  place = jnp.arange(w.shape[-1], dtype=jnp.int32)
  last = jnp.max(jnp.where(w > 0, place, 0), axis=-1, keepdims=True)
  passed = (w > 0) & (running > u[:, None] * running[:, -1:])
  return jnp.min(jnp.where(passed, place, last), axis=-1)


def draw(
  scores: View,
  peak: Float32[Array, " B"],
  temperature: Float32[Array, " B"],
  threshold: Float32[Array, " B"],
  u: Float32[Array, "B 3"],
  across: Across,
) -> Place:
  """Draws a place at or above the threshold: a part, a block in it, an entry in that.

  Each has a uniform of its own: one has 2**23 values, too few for all places at once.
  """
  rows = jnp.arange(u.shape[0])
  blocks = across.replicate(jnp.sum(weights(scores, peak, temperature, threshold), axis=-1))
  part = pick(jnp.sum(blocks, axis=-1), u[:, 0])
  block = pick(blocks[rows, part], u[:, 1])
  entries = weights(scores[rows, part, block], peak, temperature, threshold)
  return Place(part, block, pick(entries, u[:, 2]))
