"""1,024 requests of real lengths through few slots: each gets what it gets alone."""

import dataclasses

import numpy as np
import pytest

from simpo_jax.data.types import Prompt
from simpo_jax.generate.requests import make_requests
from simpo_jax.generate.sizing import request_pages
from simpo_jax.models.config import EMBEDDED
from support.generation import Generation, random_weights, settings, tokens_of
from support.hf_models import our_logits
from support.real_data import preference_data, prompt_messages

pytestmark = [pytest.mark.model, pytest.mark.slow]

CFG = dataclasses.replace(EMBEDDED, num_hidden_layers=2)
REQUESTS, LONGEST, NEW = 1024, 160, 24
TIE = 1e-4  # of logits that reach 10


@pytest.fixture(scope="module")
def params():
  return random_weights(CFG)


@pytest.fixture(scope="module")
def prompts():
  """Beginnings of real prompts, a quarter as many bytes as they have, so that lengths are
  spread as real tokens are; budgets from 1 to 24; every other one sampled."""
  rng = np.random.default_rng(0)
  texts = ["\n".join(m["content"] for m in prompt_messages(row)) for row in preference_data()]

  def prompt(i):
    data = texts[i % len(texts)].encode()
    data = data[i // len(texts) :][: min(LONGEST, 1 + len(data) // 4)]
    own = dict(max_new_tokens=int(rng.integers(1, NEW + 1)), temperature=0.8 * (i % 2))
    return Prompt(i, "", np.frombuffer(data, np.uint8).astype(np.int32), own)

  made = [prompt(i) for i in range(REQUESTS)]
  lengths = [len(p.tokens) for p in made]
  assert min(lengths) < 20 and max(lengths) == LONGEST and np.std(lengths) > 30
  return made


@pytest.fixture(scope="module")
def alone(params, prompts):
  """Every request by itself, the longest first so that one program holds each."""
  config = settings(page_size=8, prefill_chunk=32)
  longest = max(prompts, key=lambda p: len(p.tokens))
  largest = longest._replace(settings={"max_new_tokens": NEW})
  one = Generation(CFG, [largest], config)
  answers = {}
  for prompt in prompts:
    answers |= one.of(prompt)(params)
  return tokens_of(answers)


def _is_tie(params, prompt, mine, theirs):
  """Whether both go on with tokens that the dense model finds equally good, as far as
  float32 tells: the best two, or two that a draw lies between."""
  at = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b)
  context = np.asarray([[*prompt.tokens, *mine[:at]]], np.int32)
  logits = our_logits(CFG, params, context)[0, -1]
  print(f"prompt {prompt.index} parts at token {at}: {logits[mine[at]]}, {logits[theirs[at]]}")
  return not prompt.settings["temperature"] and abs(logits[mine[at]] - logits[theirs[at]]) < TIE


@pytest.mark.parametrize(
  "slots,pages,order",
  ((16, 60, "as given"), (16, 60, "shuffled"), (4, 0, "as given"), (128, 0, "as given")),
)
def test_each_gets_what_it_gets_alone(params, prompts, alone, slots, pages, order):
  if order == "shuffled":
    prompts = [prompts[i] for i in np.random.default_rng(1).permutation(REQUESTS)]
  config = settings(page_size=8, prefill_chunk=32, max_slots=slots)
  needs = sorted(request_pages(r, 8) for r in make_requests(prompts, config))
  assert needs[-1] <= 60 < sum(needs[-16:]) / 4 and 60 < sum(needs) / 100
  generation = Generation(CFG, prompts, config, **(dict(num_pages=pages) if pages else {}))
  got = tokens_of(generation(params))
  assert len(got) == REQUESTS
  for prompt in prompts:
    mine, theirs = got[prompt.index, 0], alone[prompt.index, 0]
    assert mine == theirs or _is_tie(params, prompt, mine, theirs), prompt.index
  same = np.mean([got[key] == alone[key] for key in alone])
  print(f"{same:.2%} the same, the others tied")
  assert same > 0.99
