"""Gemma 2 generates what transformers does, through windows shorter than the sequences."""

import chex
import numpy as np
import pytest

from support.generation import Generation, logprobs_of, random_prompts, settings, tokens_of
from support.hf_models import GEMMA2, VOCAB, hf_model, load
from support.tiers import sweep

pytestmark = pytest.mark.model

torch = pytest.importorskip("torch")

NEW = 12
PROMPTS = random_prompts([1, 5, 8, 17, 30, 9], VOCAB)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
  """The torch model, our config of it, our weights."""
  # With tied embeddings so small a model says the same token for ever.
  net = hf_model("Gemma2", **GEMMA2, tie_word_embeddings=False)
  folder = tmp_path_factory.mktemp("gemma2")
  net.save_pretrained(folder)
  return net, *load(folder)


@pytest.fixture(scope="module")
def greedy(models):
  _, cfg, params = models
  return Generation(cfg, PROMPTS, settings())(params)


def test_greedy_equals_transformers(models, greedy):
  net, cfg, _ = models
  assert set(cfg.windows) == {None, 7}
  for prompt in PROMPTS:
    ids = torch.from_numpy(prompt.tokens).long()[None]
    with torch.no_grad():
      theirs = net.generate(
        ids,
        attention_mask=torch.ones_like(ids),  # or tokens that happen to be the pad token are none
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=None,
        output_logits=True,
        return_dict_in_generate=True,
      )
    tokens, _, logprobs = greedy[prompt.index, 0]
    expected = theirs.sequences[0, len(prompt.tokens) :]
    assert tokens == expected.tolist() and len(set(tokens)) > 2
    logps = torch.stack(theirs.logits)[:, 0].log_softmax(-1).gather(1, expected[:, None])[:, 0]
    np.testing.assert_allclose(logprobs, logps.numpy(), atol=2e-5)


@sweep(
  "changes",
  # Nearly all of a sequence is prefilled in one chunk; or in many; or decoded a token at a time.
  (
    dict(prefill_chunk=64),
    dict(prefill_chunk=4, prefill_rows=2, max_slots=2),
    dict(shape=dict(attention="reference")),
  ),
  ids=str,
)
def test_chunks_slots_and_kernel_do_not_matter(models, greedy, changes):
  _, cfg, params = models
  shape = changes.pop("shape", {})
  answers = Generation(cfg, PROMPTS, settings(**changes), **shape)(params)
  assert tokens_of(answers) == tokens_of(greedy)
  chex.assert_trees_all_close(logprobs_of(answers), logprobs_of(greedy), atol=2e-5)
