"""Generation against a dense forward pass, and its independence of everything but the prompt."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hf_models import our_logits
from simpo_jax import model
from simpo_jax.data.prompts import Prompt
from simpo_jax.generate import LENGTH, RUNNING, STOP, generate_group
from simpo_jax.model_config import EMBEDDED
from simpo_jax.requests import generate_shape, make_requests, pack_requests, place_of
from simpo_jax.weights import OpenModel, load_params

CFG = dataclasses.replace(EMBEDDED, vocab_size=97, num_key_value_heads=2)
NEW = 12


@pytest.fixture(scope="module")
def params():
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shardings = jax.tree.map(lambda _: sharding, model.tensors(CFG))
  # Random weights ten times the usual size: sequences that do not settle into a loop.
  return jax.tree.map(
    lambda x: x * 10 if x.ndim > 1 else x,
    load_params(OpenModel("test", CFG, None, None), shardings, "float32", 1),
  )


def _prompts(lengths, seed=0):
  rng = np.random.default_rng(seed)
  return [
    Prompt(i, str(i), rng.integers(0, CFG.vocab_size, n).astype(np.int32))
    for i, n in enumerate(lengths)
  ]


PROMPTS = _prompts([1, 5, 8, 17, 3, 16, 9])


class _Settings:
  """Stands for config.generate."""

  def __init__(self, **changes):
    fields = dict(
      max_slots=0,
      prefill_chunk=8,
      max_new_tokens=NEW,
      page_size=8,
      attention="auto",
      temperature=0.0,
      top_k=0,
      top_p=1.0,
      ignore_eos=False,
      seed=0,
    )
    vars(self).update({**fields, **changes})


def _program(prompts, cfg=CFG, stop_ids=(), samples=1, **changes):
  """(the jitted generation, its packed requests, the list of requests)."""
  requests = make_requests(prompts, samples)
  settings = _Settings(**changes)
  shape = generate_shape(requests, settings, groups=1)
  packed = pack_requests(requests, shape, settings, stop_ids)
  run = jax.jit(
    lambda p, r: generate_group(
      model.unstack(p, cfg, jnp.float32),
      r._replace(each=jax.tree.map(lambda x: x[0], r.each)),
      cfg,
      shape,
      jnp.float32,
    )
  )
  return run, packed, requests, shape


def _generate(params, prompts=PROMPTS, **changes):
  """{(prompt index, sample): (tokens, finish, logprob)}, and the raw result."""
  run, packed, requests, _ = _program(prompts, **changes)
  out = jax.tree.map(np.asarray, run(params, packed))
  answers = {}
  for number, (prompt, sample) in enumerate(requests):
    _, i = place_of(number, 1)
    answers[prompt.index, sample] = (
      out.tokens[i, : out.count[i]].tolist(),
      int(out.finish[i]),
      float(out.logprob[i]),
    )
  return answers, out


@pytest.fixture(scope="module")
def greedy(params):
  return _generate(params)[0]


def _check_against_dense(params, cfg, answers):
  """Each token is the dense model's best choice given all before it (near-ties aside)."""
  for prompt in PROMPTS:
    tokens, finish, logprob = answers[prompt.index, 0]
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
    np.testing.assert_allclose(logprob, logps.sum(), atol=1e-3)


def test_greedy_equals_the_dense_forward_pass(params, greedy):
  _check_against_dense(params, CFG, greedy)


def test_sliding_window_equals_the_dense_forward_pass(params):
  cfg = dataclasses.replace(CFG, sliding_window=6)
  answers, _ = _generate(params, cfg=cfg)
  _check_against_dense(params, cfg, answers)
  assert any(answers[k][0] != v[0] for k, v in _generate(params)[0].items())


@pytest.mark.parametrize(
  "changes",
  (
    dict(max_slots=1),
    dict(max_slots=3),
    dict(page_size=16, prefill_chunk=4),
    dict(attention="reference"),
    dict(prefill_chunk=64),
  ),
)
def test_tokens_do_not_depend_on_slots_pages_chunks_or_kernel(params, greedy, changes):
  answers, _ = _generate(params, **changes)
  assert {k: v[:2] for k, v in answers.items()} == {k: v[:2] for k, v in greedy.items()}


def test_samples_depend_on_seed_prompt_and_sample_alone(params):
  hot = dict(temperature=0.8, top_k=40, top_p=0.95, samples=2)
  base, _ = _generate(params, **hot)
  assert _generate(params, prompts=PROMPTS[::-1], max_slots=4, **hot)[0].keys() == base.keys()
  shuffled = _generate(params, prompts=PROMPTS[::-1], max_slots=4, **hot)[0]
  assert {k: v[0] for k, v in shuffled.items()} == {k: v[0] for k, v in base.items()}
  assert all(base[i, 0][0] != base[i, 1][0] for i in range(len(PROMPTS)))
  other, _ = _generate(params, seed=1, **hot)
  assert all(other[k][0] != v[0] for k, v in base.items())


def test_stop_tokens_end_a_sequence_and_count(params, greedy):
  stop = greedy[3, 0][0][4]
  answers, out = _generate(params, stop_ids=(stop, 10**6))
  for key, (tokens, _, _) in greedy.items():
    cut = tokens.index(stop) + 1 if stop in tokens else NEW
    assert answers[key][0] == tokens[:cut]
    assert answers[key][1] == (STOP if stop in tokens else LENGTH)
  assert answers[3, 0][1] == STOP and answers[3, 0][0][-1] == stop
  assert (out.tokens[np.arange(NEW) >= out.count[:, None]] == -1).all()
  assert _generate(params, stop_ids=(stop,), ignore_eos=True)[0][3, 0][0] == greedy[3, 0][0]


def test_empty_entries_do_nothing(params, greedy):
  answers, out = _generate(params, max_slots=5)  # 7 prompts in 2 waves of 5: 3 entries left over
  assert out.count.tolist()[7:] == [0, 0, 0] and (out.finish[7:] == RUNNING).all()
  assert {k: v[0] for k, v in answers.items()} == {k: v[0] for k, v in greedy.items()}


@pytest.mark.parametrize("attention", ("reference", "xla"))
def test_the_pool_is_never_copied(params, attention):
  run, packed, _, shape = _program(PROMPTS, attention=attention)
  text = run.lower(params, packed).compile().as_text()
  pool = (
    f"f32[{CFG.num_hidden_layers * shape.num_pages},{shape.page_size},"
    f"{2 * CFG.num_key_value_heads},{CFG.head_dim}]"
  )
  assert re.search(rf"= \S*{re.escape(pool)}\S* scatter\(|{re.escape(pool)}.*scatter", text)
  copies = [
    line for line in text.splitlines() if re.search(rf"= {re.escape(pool)}\S* copy\(", line)
  ]
  assert not copies, copies
