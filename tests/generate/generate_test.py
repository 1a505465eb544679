"""Generation against a dense forward pass, and its independence of everything but the prompt."""

import dataclasses
import re
from typing import Any

import numpy as np
import pytest

from simpo_jax.data.types import Prompt
from simpo_jax.generate.requests import make_requests
from simpo_jax.generate.sizing import request_pages
from simpo_jax.generate.stop_automaton import stop_automaton
from simpo_jax.generate.types import LENGTH, NONFINITE, STOP
from simpo_jax.models.config import EMBEDDED
from simpo_jax.program.hlo import copies
from support.generation import Generation, random_prompts, random_weights, settings, tokens_of
from support.hf_models import our_logits
from support.tiers import sweep

pytestmark = pytest.mark.model

CFG = dataclasses.replace(EMBEDDED, vocab_size=97, num_key_value_heads=2, num_hidden_layers=2)
NEW = 12
PROMPTS = random_prompts([1, 5, 8, 17, 3, 16, 9], CFG.vocab_size)
HOT: dict[str, Any] = dict(temperature=0.8, top_k=40, top_p=0.95, num_samples=2)


@pytest.fixture(scope="module")
def params():
  return random_weights(CFG)


def _generate(params, prompts=PROMPTS, cfg=CFG, stops=None, ends=(), shape=None, **changes):
  return Generation(cfg, prompts, settings(**changes), stops, ends, **(shape or {}))(params)


@pytest.fixture(scope="module")
def greedy(params):
  return _generate(params)


def _check_against_dense(params, cfg, answers):
  """Each token is the dense model's best choice given all before it (near-ties aside)."""
  for prompt in PROMPTS:
    tokens, finish, logprobs = answers[prompt.index, 0]
    assert len(tokens) == NEW and finish == LENGTH
    sequence = np.concatenate([prompt.tokens, tokens])
    padded = np.zeros((1, 32), np.int32)  # causal: padding behind changes nothing
    padded[0, : len(sequence)] = sequence
    logits = our_logits(cfg, params, padded)[0, len(prompt.tokens) - 1 : len(sequence) - 1]
    best = logits.max(axis=1)
    chosen = logits[np.arange(NEW), tokens]
    np.testing.assert_array_less(best - chosen, 1e-4)
    assert (logits.argmax(axis=1) == tokens).mean() > 0.9
    logps = chosen - np.log(np.exp(logits - best[:, None]).sum(axis=1)) - best
    np.testing.assert_allclose(logprobs, logps, atol=1e-4)


def test_greedy_equals_the_dense_forward_pass(params, greedy):
  _check_against_dense(params, CFG, greedy)


def test_sliding_window_equals_the_dense_forward_pass(params, greedy):
  cfg = dataclasses.replace(CFG, sliding_window=6)
  answers = _generate(params, cfg=cfg)
  _check_against_dense(params, cfg, answers)
  assert any(answers[k][0] != v[0] for k, v in greedy.items())


@sweep(
  "changes",
  (
    dict(max_slots=1),
    dict(max_slots=3),
    dict(max_slots=3, prefill_rows=2),
    dict(page_size=16, prefill_chunk=4),
    dict(prefill_chunk=64, prefill_rows=7),
    dict(shape=dict(attention="reference")),
    dict(shape=dict(widths=(7, 5, 2))),
    # One sequence at a time for want of pages, and two or three.
    dict(shape=dict(num_pages=4)),
    dict(shape=dict(num_pages=9)),
  ),
  default=3,
)
def test_tokens_do_not_depend_on_slots_pages_chunks_or_kernel(params, greedy, changes):
  assert tokens_of(_generate(params, **changes)) == tokens_of(greedy)


def test_samples_depend_on_seed_prompt_and_sample_alone(params):
  base = tokens_of(_generate(params, **HOT))
  assert tokens_of(_generate(params, prompts=PROMPTS[::-1], max_slots=4, **HOT)) == base
  assert all(base[i, 0] != base[i, 1] for i in range(len(PROMPTS)))
  other = tokens_of(_generate(params, seed=1, **HOT))
  assert all(other[k] != v for k, v in base.items())


@pytest.mark.slow
def test_samples_share_the_pages_of_their_prompt(params):
  """With sharing, samples get what they get alone, also from a pool that is much too
  small for all. 17 prompt tokens make two full pages of 8 and none copied, 24 two and 7."""
  prompts = random_prompts([17, 16, 24, 18], CFG.vocab_size)
  hot: dict[str, Any] = dict(temperature=1.0, num_samples=5, max_new_tokens=6)
  base = tokens_of(_generate(params, prompts=prompts, shape=dict(shared_prompts=True), **hot))
  alone = {}
  for p in prompts:
    one = Generation(CFG, [p], settings(**{**hot, "num_samples": 1}))
    for sample in range(5):
      one.packed.each.sample[:] = sample
      alone[p.index, sample] = one(params)[p.index, 0][0]
  assert base == alone
  # Room for one sequence at a time, and for about half of the samples of a prompt.
  largest = max(request_pages(r, 8) for r in make_requests(prompts, settings(**hot)))
  for pages in (largest, largest + 3):
    assert tokens_of(_generate(params, prompts=prompts, shape=dict(num_pages=pages), **hot)) == base


def test_each_prompt_has_its_own_settings(params, greedy):
  hot = _generate(params, temperature=0.8)
  mixed = [
    p if p.index % 2 else Prompt(p.index, p.text, p.tokens, dict(temperature=0.8)) for p in PROMPTS
  ]
  short = Prompt(7, "7", PROMPTS[3].tokens, dict(max_new_tokens=5))
  answers = tokens_of(_generate(params, prompts=[*mixed, short]))
  for p in PROMPTS:
    assert answers[p.index, 0] == (greedy if p.index % 2 else hot)[p.index, 0][0]
  assert answers[7, 0] == greedy[3, 0][0][:5]


@pytest.mark.slow
def test_repetition_penalty_equals_transformers_rule(params):
  """Replays the answer on dense logits: the best token after penalizing what was there."""
  penalty = 1.7
  answers = _generate(params, repetition_penalty=penalty, max_slots=3)
  changed = 0
  for prompt in PROMPTS:
    tokens = answers[prompt.index, 0][0]
    sequence = list(prompt.tokens)
    padded = np.zeros((1, 32), np.int32)
    padded[0, : len(sequence) + NEW] = [*sequence, *tokens]
    logits = our_logits(CFG, params, padded)[0]
    for token in tokens:
      now = logits[len(sequence) - 1].copy()
      plain = now.argmax()
      seen = np.unique(sequence)
      now[seen] = np.where(now[seen] > 0, now[seen] / penalty, now[seen] * penalty)
      assert now.max() - now[token] < 1e-4
      changed += plain != now.argmax()
      sequence.append(token)
  assert changed > 5


def test_stop_tokens_end_a_sequence_and_count(params, greedy):
  stop = greedy[3, 0][0][4]
  answers = _generate(params, stops=stop_automaton(CFG.vocab_size, (stop, 10**6)))
  for key, (tokens, _, _) in greedy.items():
    cut = tokens.index(stop) + 1 if stop in tokens else NEW
    assert answers[key][0] == tokens[:cut]
    assert answers[key][1] == (STOP if stop in tokens else LENGTH)
  assert answers[3, 0][1] == STOP and answers[3, 0][0][-1] == stop


@sweep(
  "changes",
  (
    dict(max_slots=2),
    dict(max_slots=3, page_size=16, prefill_chunk=4),
    dict(shape=dict(num_pages=6)),
    dict(temperature=0.8, num_samples=2, top_p=0.9, max_slots=3),
  ),
  default=2,
)
def test_suppressed_tokens_are_those_of_a_dense_pass(params, greedy, changes):
  """Each token is the best that is allowed at its place; slots and pages do not matter."""
  ends, least = greedy[3, 0][0][4:6], 6
  stops = stop_automaton(CFG.vocab_size, ends)
  never = (greedy[0, 0][0][0], greedy[1, 0][0][0])
  common = dict(stops=stops, ends=ends, min_new_tokens=least, suppress_tokens=never)
  answers = _generate(params, **common, **changes)
  changed = 0
  if "temperature" in changes:
    alone = _generate(params, **common, **{**changes, "max_slots": 1})
    assert tokens_of(alone) == tokens_of(answers)
  for prompt in PROMPTS:
    tokens, finish, logprobs = answers[prompt.index, 0]
    ended = [n for n, token in enumerate(tokens, 1) if token in ends]
    assert (finish == STOP) == bool(ended) and (not ended or least < ended[0] == len(tokens))
    assert not set(never) & set(tokens)
    sequence = np.concatenate([prompt.tokens, tokens])
    padded = np.zeros((1, 32), np.int32)
    padded[0, : len(sequence)] = sequence
    logits = our_logits(CFG, params, padded)[0, len(prompt.tokens) - 1 : len(sequence) - 1]
    best = logits.max(axis=1)
    chosen = logits[np.arange(len(tokens)), tokens]
    logps = chosen - np.log(np.exp(logits - best[:, None]).sum(axis=1)) - best
    np.testing.assert_allclose(logprobs, logps, atol=1e-4)  # the model's own
    if "temperature" not in changes:
      allowed = logits.copy()
      allowed[:, list(never)] = -np.inf
      allowed[:least, ends] = -np.inf
      np.testing.assert_array_less(allowed.max(axis=1) - chosen, 1e-4)
      changed += (logits.argmax(axis=1) != tokens).sum()
  assert changed > 3 or "temperature" in changes


def test_what_is_off_is_not_in_the_program():
  off = Generation(CFG, PROMPTS, settings())
  assert not off.shape.suppression and off.packed.suppression is None


def test_stop_strings_end_a_sequence_with_the_token_that_completes_them(params, greedy):
  """Tokens stand for two bytes here, and the string begins and ends inside of tokens."""
  spelled = [bytes([65 + i // 10, 48 + i % 10]) for i in range(CFG.vocab_size)]
  text = b"".join(spelled[t] for t in greedy[3, 0][0])
  string = text[5:10].decode()  # ends in the first byte of token 5
  stops = stop_automaton(CFG.vocab_size, (), ("never", string), spelled)
  answers = _generate(params, stops=stops, max_slots=2)
  for key, (tokens, _, _) in greedy.items():
    ends = [n for n in range(NEW) if string.encode() in b"".join(spelled[t] for t in tokens[:n])]
    assert answers[key][0] == tokens[: min(ends, default=NEW)]
  assert len(answers[3, 0][0]) == 5 and answers[3, 0][1] == STOP


def test_logits_that_are_not_finite_end_their_own_request_alone(params, greedy):
  """The embedding of a token is NaN: that of a prompt, or one that answers choose."""
  cfg = dataclasses.replace(CFG, tie_word_embeddings=False)
  whole = {**params, "lm_head": params["embed"]}
  assert tokens_of(_generate(whole, cfg=cfg)) == tokens_of(greedy)
  exact = dict(attention="reference")  # a sum over rows would pass a NaN on to the others
  in_prompt, chosen = int(PROMPTS[4].tokens[1]), greedy[3, 0][0][4]
  for bad in (in_prompt, chosen):
    broken = {**whole, "embed": whole["embed"].at[bad].set(np.nan)}
    answers = _generate(broken, cfg=cfg, shape=exact)
    ended = 0
    for prompt in PROMPTS:
      tokens, finish, logprobs = answers[prompt.index, 0]
      expected, count = greedy[prompt.index, 0][0], NEW
      if bad in prompt.tokens:
        count = 0
      elif bad in expected[:-1]:
        count = expected.index(bad) + 1
      assert tokens == expected[:count] and np.isfinite(logprobs).all()
      assert finish == (LENGTH if count == NEW else NONFINITE)
      ended += count < NEW
    assert 0 < ended < len(PROMPTS)


@sweep("attention", ("reference", "xla", "cpu"))
@sweep("samples", (1, 2))
def test_the_pool_is_never_copied(params, attention, samples):
  g = Generation(
    CFG, PROMPTS, settings(num_samples=samples, max_slots=4), attention=attention, widths=(4, 2)
  )
  text = g.run.lower(params, g.packed).compile().as_text()
  lanes = 2 * CFG.num_key_value_heads * CFG.head_dim
  pool = f"f32[{CFG.num_hidden_layers * g.shape.num_pages},{g.shape.page_size},{lanes}]"
  assert text and re.search(rf"{re.escape(pool)}.*scatter", text)
  assert not copies(text, pool)
