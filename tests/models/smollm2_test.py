"""A real model on real prompts: SmolLM2-135M out of a GGUF, against transformers."""

import numpy as np
import pytest
import transformers

from simpo_jax.models import llama
from simpo_jax.models.hf_config import from_hf
from support.hf_models import hf_smollm2, load, our_hidden
from support.real_data import preference_data, prompt_messages
from support.real_model import smollm2_gguf

pytestmark = pytest.mark.model

torch = pytest.importorskip("torch")

PROMPTS = 4
LENGTH = 256
# Logits reach 40, and 30 layers of float32 rounding move them by 1e-4 in either
# implementation: the reference is float64, so that only our own rounding counts.
TOLERANCE = 2e-4


def _prompts():
  path = smollm2_gguf()
  tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  rendered = (
    tokenizer.apply_chat_template(
      prompt_messages(row), add_generation_prompt=True, return_dict=False
    )
    for row in preference_data()
  )
  # Of the prompts that fit, the longest: rotary angles and sums grow with length.
  fitting = sorted((ids for ids in rendered if len(ids) <= LENGTH), key=len)
  return fitting[-PROMPTS:]


@pytest.mark.slow
def test_config_and_logits_equal_transformers():
  net = hf_smollm2().double()
  cfg, params = load(smollm2_gguf())
  assert cfg == from_hf(net.config.to_dict())
  assert llama.count_params(cfg) == net.num_parameters()

  prompts = _prompts()
  tokens = np.zeros((PROMPTS, LENGTH), np.int32)  # padding comes after: causality hides it
  for row, ids in zip(tokens, prompts, strict=True):
    row[: len(ids)] = ids
  hidden = our_hidden(cfg, params, tokens)
  for ids, x in zip(prompts, hidden, strict=True):
    with torch.no_grad():
      expected = net(torch.tensor([ids])).logits[0].numpy()
    ours = np.asarray(llama.unembed(params, x[: len(ids)], cfg))
    print(f"{len(ids)} tokens: largest difference {np.abs(ours - expected).max():.1e}")
    np.testing.assert_allclose(ours, expected, atol=TOLERANCE, rtol=0)
