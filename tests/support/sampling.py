"""Independent references for sampling, in float64 and by sorting."""

import jax.numpy as jnp
import numpy as np

from simpo_jax.generate.sampling.settings import Sampling, switches_for

OFF = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0)


def logits_of(rows, vocab, seed=0, spread=3.0):
  return (np.random.default_rng(seed).normal(size=(rows, vocab)) * spread).astype(np.float32)


def settings_of(n, **changes):
  """Those of n rows, each a number for all or a list of n."""
  kinds = dict.fromkeys(OFF, jnp.float32) | dict(top_k=jnp.int32)
  values = OFF | changes
  return Sampling(
    **{name: jnp.broadcast_to(jnp.asarray(v, kinds[name]), (n,)) for name, v in values.items()}
  )


def switches_of(settings):
  return switches_for(Sampling(*row) for row in zip(*map(np.asarray, settings), strict=True))


def probabilities(logits, temperature, top_k, top_p, min_p, repetition_penalty, seen=None):
  """The distribution of one row's token: [V], float64."""
  scores = logits.astype(np.float64)
  if seen is not None:
    factor = np.where(scores > 0, 1 / repetition_penalty, repetition_penalty)
    scores = np.where(seen, scores * factor, scores)
  if not temperature:
    return (np.arange(len(scores)) == scores.argmax()).astype(np.float64)
  order = np.argsort(-scores, kind="stable")
  kept = order[: top_k or None]
  weights = np.exp((scores[kept] - scores[kept[0]]) / temperature)
  before = np.cumsum(weights) - weights
  enough = (weights >= min_p) & ((before < top_p * weights.sum()) | (top_p >= 1))
  out = np.zeros(len(scores))
  out[kept[enough]] = weights[enough] / weights[enough].sum()
  return out
