"""Choice of the next token: greedy, temperature, top-k, top-p, min-p, repetition penalty.

A sampled token is drawn with three uniform numbers, which depend only on (seed, prompt
index, sample index, position), and with sums of fixed extent. The same prompt therefore gives
the same tokens on any number of hosts and in any slot, up to rounding differences in the
logits.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32, Key

from simpo_jax.generate.sampling.draw import draw
from simpo_jax.generate.sampling.settings import ONE_DEVICE, Across, Launch, Sampling, Switches
from simpo_jax.generate.sampling.truncation import cut
from simpo_jax.generate.sampling.vocabulary import tokens_at, view_of
from simpo_jax.kernels.loops import cond

# A token of less than that relative to the most likely one is never drawn, so that its weight
# is 0 wherever it is computed, and never next to the least float32.
_LEAST = 1e-35


def uniforms(
  key: Key[Array, ""],
  prompt: Int32[Array, " B"],
  sample: Int32[Array, " B"],
  position: Int32[Array, " B"],
) -> Float32[Array, "B 3"]:
  """Returns three uniform numbers in [0, 1) per row.

  Args:
    key: the key of the run's generation seed.
    prompt: index of the row's prompt.
    sample: index among the samples of that prompt.
    position: position in the sequence of the token before the one to draw.
  """

  def of_row(*indices: Int32[Array, ""]) -> Float32[Array, " 3"]:
    folded = key
    for index in indices:
      folded = jax.random.fold_in(folded, index)
    return jax.random.uniform(folded, (3,))

  return jax.vmap(of_row)(prompt, sample, position)


def choose(
  logits: Float32[Array, "B V"],
  sampling: Sampling,
  u: Float32[Array, "B 3"],
  switches: Switches,
  seen: Bool[Array, "B V"] | None = None,
  banned: Bool[Array, "B V"] | None = None,
  launch: Launch | None = None,
  across: Across = ONE_DEVICE,
) -> tuple[Int32[Array, " B"], Float32[Array, " B"]]:
  """Chooses the next token of each row.

  Args:
    logits: the model's logits.
    sampling: settings of each row.
    u: uniform in [0, 1), from `uniforms`.
    switches: of the program; settings that they rule out are ignored.
    seen: which tokens occur in each row's prompt or answer; None if no row has a
      repetition penalty.
    banned: which tokens may not be chosen, not all of a row; None if any may.
    launch: what the launch's requests ask for, from `launch_of`; None if everything.
    across: how the logits are divided over devices.

  Returns:
    The tokens, and their natural log-probabilities under the model itself: before
    penalty, suppression, temperature and truncation. They are NaN where logits are NaN.
  """
  scores = logits if seen is None else penalize(logits, seen, sampling.repetition_penalty)
  if banned is not None:
    scores = jnp.where(banned, -jnp.inf, scores)
  peak = jnp.max(scores, axis=-1)
  greedy = functools.partial(_greedy, logits, scores, peak)
  if switches.sampled:
    sampled = functools.partial(
      _sampled, logits, scores, peak, sampling, u, switches, launch, across
    )
    # The predicate is the same in all groups: the branches contain collectives.
    token, chosen = sampled() if launch is None else cond(launch.sampled, sampled, greedy)
  else:
    token, chosen = greedy()
  return token, chosen - jax.nn.logsumexp(logits, axis=-1)


def _greedy(
  logits: Float32[Array, "B V"], scores: Float32[Array, "B V"], peak: Float32[Array, " B"]
) -> tuple[Int32[Array, " B"], Float32[Array, " B"]]:
  """Returns the first token of the highest score, and its logit."""
  # Two plain reductions are several times as fast on a CPU as jnp.argmax.
  index = jnp.arange(scores.shape[-1], dtype=jnp.int32)
  # With NaN logits no entry equals the maximum: return a valid index, whose log-probability
  # is NaN.
  best = jnp.where(scores == peak[:, None], index, scores.shape[-1] - 1)
  token = jnp.min(best, axis=-1)
  return token, jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]


def _sampled(
  logits: Float32[Array, "B V"],
  scores: Float32[Array, "B V"],
  peak: Float32[Array, " B"],
  sampling: Sampling,
  u: Float32[Array, "B 3"],
  switches: Switches,
  launch: Launch | None,
  across: Across,
) -> tuple[Int32[Array, " B"], Float32[Array, " B"]]:
  """Returns a token of each row and its logit; in greedy rows, those of `_greedy`.

  min-p (arXiv:2407.01082) keeps tokens with at least min_p times the highest probability.
  """
  view = view_of(scores)
  # At temperature 0 the threshold is the peak.
  min_p = jnp.log(jnp.maximum(sampling.min_p, _LEAST))
  threshold = peak + sampling.temperature * min_p
  if switches.top_k or switches.top_p:
    find = functools.partial(cut, view, peak, sampling, switches, across)
    if launch is None:
      least = find()
    else:
      least = cond(launch.truncated, find, lambda: jnp.full_like(peak, -jnp.inf))
    threshold = jnp.maximum(threshold, least)
  u = jnp.where(sampling.temperature[:, None] > 0, u, 0.0)  # the first place of the peak
  place = draw(view, peak, sampling.temperature, threshold, u, across)
  rows = jnp.arange(peak.shape[0])
  chosen = view_of(logits)[rows, place.part, place.block, place.entry]
  return tokens_at(place, view, logits.shape[-1]), chosen


def penalize(
  logits: Float32[Array, "B V"], seen: Bool[Array, "B V"], penalty: Float32[Array, " B"]
) -> Float32[Array, "B V"]:
  """Applies the repetition penalty to the logits of `seen` tokens.

  Positive logits are divided by the penalty and negative ones multiplied, as in Hugging
  Face's generate; the paper divides both (CTRL, arXiv:1909.05858, section 4.1).
  """
  penalty = penalty[:, None]
  return jnp.where(seen, jnp.where(logits > 0, logits / penalty, logits * penalty), logits)
