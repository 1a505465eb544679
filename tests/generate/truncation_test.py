"""The least score that top-k and top-p keep, against sorted references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from simpo_jax.generate.sampling import truncation
from simpo_jax.generate.sampling.choose import choose
from simpo_jax.generate.sampling.settings import ONE_DEVICE, Switches
from simpo_jax.generate.sampling.vocabulary import view_of
from support.sampling import OFF, logits_of, probabilities, settings_of, switches_of
from support.tiers import sweep


def _cut(logits, settings, switches=None, shards=1):
  switches = switches or switches_of(settings)
  across = ONE_DEVICE._replace(vocab_shards=shards)
  find = jax.jit(lambda x, s: truncation.cut(view_of(x), jnp.max(x, axis=1), s, switches, across))
  return np.asarray(find(jnp.asarray(logits), settings))


def _check(logits, cut, **changes):
  """The cut keeps what the sorted reference does, ties included."""
  for row, least in zip(logits, cut, strict=True):
    kept = probabilities(row, **OFF | changes) > 0
    assert set(np.flatnonzero(row >= least)) == set(np.flatnonzero(row >= row[kept].min()))


@sweep("shards", (4, 1, 32))
@sweep("vocab", (777, 97, 4096))
@pytest.mark.parametrize(
  "k,p",
  ((1, 1.0), (5, 1.0), (64, 1.0), (300, 1.0), (0, 0.9), (0, 0.1), (40, 0.7), (1000, 0.5)),
)
@pytest.mark.parametrize("spread", (3.0, 0.01))  # 0.01: far more tokens than candidates
def test_the_cut_equals_sorting(k, p, vocab, spread, shards):
  logits = logits_of(6, vocab, spread=spread)
  changes = dict(top_k=k, top_p=p, temperature=0.7)
  _check(logits, _cut(logits, settings_of(6, **changes), shards=shards), **changes)


@pytest.mark.parametrize("k,p", ((3, 1.0), (100, 1.0), (500, 1.0), (0, 0.3), (0, 0.9), (90, 0.9)))
def test_ties_are_all_kept_also_beyond_the_candidates(k, p):
  logits = np.round(logits_of(6, 2048, spread=1.0))
  assert min(np.sort((row[:, None] == row).sum(1))[-1] for row in logits) > truncation.LIMIT
  changes = dict(top_k=k, top_p=p)
  _check(logits, _cut(logits, settings_of(6, **changes)), **changes)


@sweep("k,p", ((300, 0.9), (300, 1.0), (0, 0.9)))
def test_bisection_equals_the_candidates_bit_by_bit(k, p):
  """Where both know the cut: it is the score of a token."""
  logits, settings = logits_of(6, 4096), settings_of(6, top_k=k, top_p=p)
  peak = jnp.max(jnp.asarray(logits), axis=1)
  found = truncation._search(
    view_of(jnp.asarray(logits)), peak, settings, settings.top_k, ONE_DEVICE
  )
  np.testing.assert_array_equal(found, _cut(logits, settings))
  for row, least in zip(logits, np.asarray(found), strict=True):
    assert least in row


@sweep("scale", (1e30, 1e-30, 1.0))
def test_bisection_of_any_magnitude(scale):
  logits = (logits_of(5, 1024) * scale).astype(np.float32)
  cut = _cut(logits, settings_of(5, top_k=700))
  np.testing.assert_array_equal(cut, np.sort(logits, axis=1)[:, -700])  # distinct, none subnormal


def test_a_row_does_not_depend_on_its_companions():
  """Alone, beside rows that the candidates do not suffice for, and in any order."""
  peaked, flat = logits_of(3, 4096), logits_of(7, 4096, spread=0.01)
  cut = functools.partial(_cut, switches=Switches(True, 40, True))
  alone = cut(peaked, settings_of(3, top_p=0.9))
  beside = cut(np.concatenate([peaked, flat]), settings_of(10, top_p=0.9))
  np.testing.assert_array_equal(beside[:3], alone)
  turned = cut(np.concatenate([flat, peaked])[::-1], settings_of(10, top_p=0.9))
  np.testing.assert_array_equal(turned[:3], alone[::-1])
  np.testing.assert_array_equal(turned[3:], beside[3:][::-1])
  mixed = settings_of(10, top_p=[0.9] * 3 + [1.0] * 7, top_k=[0] * 3 + [40] * 7)
  np.testing.assert_array_equal(cut(np.concatenate([peaked, flat]), mixed)[:3], alone)


def test_rows_that_ask_for_nothing_have_no_cut():
  settings = settings_of(4, temperature=[0, 1, 1, 0], top_k=[3, 0, 3, 0], top_p=[0.5, 1, 1, 0])
  cut = _cut(logits_of(4, 300), settings)
  np.testing.assert_array_equal(np.isneginf(cut), [True, True, False, True])


@sweep("k,p", ((40, 0.7), (0, 1.0), (5, 1.0), (0, 0.9)))
def test_banned_tokens_equal_transformers_and_leave_the_log_probability(k, p):
  """Of what is left, truncation keeps what it keeps of a vocabulary without them."""
  torch = pytest.importorskip("torch")
  logits, rows = logits_of(6, 300), np.arange(6)
  banned = np.argsort(-logits, axis=1)[:, :3]  # of all rows together
  processor = transformers.SuppressTokensLogitsProcessor(np.unique(banned).tolist())
  theirs = processor(torch.zeros((6, 1), dtype=torch.long), torch.tensor(logits)).numpy()
  mask = jnp.asarray(np.isneginf(theirs))
  hot = settings_of(6, top_k=k, top_p=p, min_p=0.01)
  u = np.random.default_rng(0).random((200, 6, 3)).astype(np.float32)
  for settings, times in ((settings_of(6, temperature=0.0), 1), (hot, 200)):
    switches = switches_of(settings)
    draw = jax.jit(
      lambda u, s=settings, w=switches: choose(jnp.asarray(logits), s, u, w, None, mask)
    )
    for n in range(times):
      tokens, logprob = draw(jnp.asarray(u[n]))
      model = np.asarray(jax.nn.log_softmax(logits))[rows, tokens]
      np.testing.assert_allclose(logprob, model, atol=1e-5)
      for row, token in enumerate(np.asarray(tokens)):
        if times == 1:
          assert token == theirs[row].argmax()
        else:
          changes = OFF | dict(top_k=k, top_p=p, min_p=0.01)
          assert probabilities(theirs[row], **changes)[token] > 0
