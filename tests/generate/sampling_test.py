"""Sampling against sorted numpy references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from simpo_jax.generate.sampling import (
  Sampling,
  choose,
  inverse_cdf,
  penalize,
  truncated_weights,
  uniforms,
)


def _logits(rows, vocab, seed=0, spread=3.0):
  return (np.random.default_rng(seed).normal(size=(rows, vocab)) * spread).astype(np.float32)


def _settings(n, **changes):
  """Those of n rows, each a number for all or a list of n."""
  values = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, repetition_penalty=1.0) | changes
  kinds = dict.fromkeys(values, jnp.float32) | dict(top_k=jnp.int32)
  return Sampling(
    **{name: jnp.broadcast_to(jnp.asarray(v, kinds[name]), (n,)) for name, v in values.items()}
  )


def _kept(logits, k, p, min_p):
  """Sorted reference: the indices that top-k, then top-p, then min-p keep."""
  order = np.argsort(-logits.astype(np.float64))
  order = order[:k] if k else order
  weights = np.exp(logits[order].astype(np.float64) - logits.max())
  before = np.cumsum(weights) - weights
  enough = weights >= min_p
  return set(order[enough & (before < p * weights.sum())]) if p < 1 else set(order[enough])


@pytest.mark.parametrize(
  "k,p,min_p",
  (
    (0, 1.0, 0.0),
    (1, 1.0, 0.0),
    (5, 1.0, 0.0),
    (0, 0.9, 0.0),
    (0, 0.1, 0.0),
    (40, 0.7, 0.0),
    (1000, 0.5, 0.0),
    (0, 1.0, 0.02),
    (0, 1.0, 1.0),
    (3, 1.0, 0.01),
    (40, 0.95, 0.05),
  ),
)
def test_truncation_equals_sorting(k, p, min_p):
  logits = _logits(6, 777)
  n = logits.shape[0]
  settings = _settings(n, top_k=k, top_p=p, min_p=min_p)
  out = np.asarray(jax.jit(truncated_weights)(jnp.asarray(logits), settings))
  for row in range(n):
    kept = _kept(logits[row], k, p, min_p)
    assert set(np.flatnonzero(out[row])) == kept
    expected = np.exp(logits[row] - logits[row].max())
    chosen = sorted(kept)
    np.testing.assert_allclose(out[row, chosen], expected[chosen], rtol=1e-5)


def test_dominant_and_uniform_rows_keep_something():
  dominant = np.full((1, 300), -50.0, np.float32)
  dominant[0, 123] = 50.0
  flat = np.zeros((1, 300), np.float32)
  for logits, count in ((dominant, 1), (flat, 300)):
    out = truncated_weights(jnp.asarray(logits), _settings(1, top_p=0.5))
    assert np.count_nonzero(np.asarray(out)) == count


@pytest.mark.parametrize("k,p,min_p", ((0, 1.0, 0.0), (5, 1.0, 0.0), (0, 0.9, 0.0), (40, 0.7, 0.2)))
def test_banned_tokens_equal_transformers_and_leave_the_log_probability(k, p, min_p):
  """Of what is left, truncation keeps what it keeps of a vocabulary without them."""
  torch = pytest.importorskip("torch")
  logits, rows = _logits(6, 300), np.arange(6)
  banned = np.argsort(-logits, axis=1)[:, :3]  # of all rows together
  processor = transformers.SuppressTokensLogitsProcessor(np.unique(banned).tolist())
  theirs = processor(torch.zeros((6, 1), dtype=torch.long), torch.tensor(logits)).numpy()
  mask = jnp.asarray(np.isneginf(theirs))
  tokens, logprob = choose(
    jnp.asarray(logits), _settings(6, temperature=0.0), jnp.zeros(6), banned=mask
  )
  np.testing.assert_array_equal(tokens, theirs.argmax(axis=1))
  model = np.asarray(jax.nn.log_softmax(logits))[rows, tokens]
  np.testing.assert_allclose(logprob, model, atol=1e-5)
  hot = _settings(6, top_k=k, top_p=p, min_p=min_p)
  out = np.asarray(truncated_weights(jnp.asarray(theirs), hot, mask))
  allowed = set(np.flatnonzero(~np.isneginf(theirs[0])))
  for row in rows:
    assert set(np.flatnonzero(out[row])) == _kept(theirs[row], k, p, min_p) & allowed
  u = jnp.asarray(np.random.default_rng(0).random(6), jnp.float32)
  drawn, _ = choose(jnp.asarray(logits), hot, u, banned=mask)
  assert (out[rows, np.asarray(drawn)] > 0).all()


@pytest.mark.parametrize("vocab", (5, 128, 1000))
def test_inverse_cdf_equals_a_running_sum(vocab):
  rng = np.random.default_rng(0)
  weights = rng.random((200, vocab)).astype(np.float32) * (rng.random((200, vocab)) < 0.5)
  weights[:, vocab // 2] += 0.01
  u = rng.random(200).astype(np.float32)
  u[:3] = 0.0, 0.5, np.nextafter(np.float32(1), np.float32(0))
  out = np.asarray(jax.jit(inverse_cdf)(jnp.asarray(weights), jnp.asarray(u)))
  running = np.cumsum(weights.astype(np.float64), axis=1)
  for row in range(200):
    assert weights[row, out[row]] > 0
    target = u[row] * running[row, -1]
    slack = 1e-5 * running[row, -1]
    assert running[row, out[row]] > target - slack
    assert running[row, out[row]] - weights[row, out[row]] <= target + slack


def test_rounding_at_a_block_border_never_draws_a_weightless_token():
  weights = np.zeros((1, 256), np.float32)
  weights[0, [3, 130, 200]] = 0.00543625, 0.935, 1.0
  total = weights.sum(dtype=np.float32)
  border = weights[0, 3] / total
  for _ in range(8):  # a few steps of float32 to either side of the border
    border = np.nextafter(border, np.float32(0))
  for _ in range(16):
    [token] = np.asarray(inverse_cdf(jnp.asarray(weights), jnp.asarray([border])))
    assert weights[0, token] > 0, (border, token)
    border = np.nextafter(border, np.float32(1))


def test_frequencies_follow_the_distribution():
  n, logits = 20_000, np.asarray([0.0, 1.0, 2.0, -1.0], np.float32)
  key = jax.random.key(3)
  u = uniforms(key, jnp.arange(n), jnp.zeros(n, jnp.int32), jnp.full((n,), 7))
  tokens, logprob = choose(jnp.broadcast_to(logits, (n, 4)), _settings(n, temperature=0.5), u)
  expected = np.exp(logits / 0.5) / np.exp(logits / 0.5).sum()
  observed = np.bincount(np.asarray(tokens), minlength=4) / n
  np.testing.assert_allclose(observed, expected, atol=4 * np.sqrt(0.25 / n))
  # The reported log-probability is the model's own, before temperature.
  model = logits - np.log(np.exp(logits).sum())
  np.testing.assert_allclose(np.asarray(logprob), model[np.asarray(tokens)], atol=1e-6)


def test_greedy_and_sampled_rows_mix():
  logits = _logits(4, 50)
  settings = _settings(4, temperature=[0, 1, 0, 1], top_k=[0, 1, 0, 0])
  tokens, _ = choose(jnp.asarray(logits), settings, jnp.full(4, 0.999))
  best = logits.argmax(axis=1)
  np.testing.assert_array_equal(np.asarray(tokens)[:3], best[:3])  # top_k=1 is greedy too


def test_the_repetition_penalty_equals_transformers_and_leaves_the_log_probability():
  torch = pytest.importorskip("torch")
  logits = _logits(5, 60)
  ids = np.random.default_rng(1).integers(0, 60, (5, 20))
  penalties = [1.0, 1.3, 2.0, 0.5, 5.0]
  seen = np.zeros(logits.shape, bool)
  np.put_along_axis(seen, ids, True, axis=1)
  tokens, logprob = choose(
    jnp.asarray(logits),
    _settings(5, temperature=0.0, repetition_penalty=penalties),
    jnp.zeros(5),
    jnp.asarray(seen),
  )
  for row, penalty in enumerate(penalties):
    processor = transformers.RepetitionPenaltyLogitsProcessor(penalty)
    theirs = processor(torch.tensor(ids[row][None]), torch.tensor(logits[row][None])).numpy()[0]
    mine = penalize(*(jnp.asarray(x)[None] for x in (logits[row], seen[row], penalty)))[0]
    np.testing.assert_allclose(mine, theirs, rtol=1e-6)
    assert tokens[row] == theirs.argmax()
  model = np.asarray(jax.nn.log_softmax(logits))[np.arange(5), tokens]
  np.testing.assert_allclose(logprob, model, atol=1e-5)
  assert (tokens != logits.argmax(axis=1)).sum() >= 2


def test_a_draw_depends_on_its_own_indices_alone():
  key = jax.random.key(0)
  draw = lambda *a: np.asarray(uniforms(key, *(jnp.asarray(x) for x in a)))  # noqa: E731
  base = draw([4, 7], [0, 1], [10, 12])
  np.testing.assert_array_equal(draw([7, 4], [1, 0], [12, 10]), base[::-1])
  others = np.concatenate([draw([5], [0], [10]), draw([4], [1], [10]), draw([4], [0], [11])])
  assert len({*others, base[0]}) == 4
