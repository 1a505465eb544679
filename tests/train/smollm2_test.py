"""A real step: SmolLM2-135M on real preference pairs, against transformers and torch."""

import dataclasses
import functools

import pytest
import transformers
from tokenizers import pre_tokenizers

from simpo_jax.data.packing import pack, pair_length
from simpo_jax.data.pairs import load_pairs
from simpo_jax.settings import DataSettings, SimPOSettings
from simpo_jax.tokenizer.load import load_tokenizer
from simpo_jax.train.batch import batch_shape
from support.hf_models import hf_smollm2, load
from support.real_data import data_file, preference_data, prompt_messages
from support.real_model import smollm2_gguf
from support.simpo_reference import (
  check_close,
  check_grads,
  check_metrics,
  gradient_of_step,
  reference,
  step_config,
)

pytestmark = [pytest.mark.model, pytest.mark.slow]

PAIRS = 4
MIN_RESPONSE = 16  # tokens
# The reference is float64, so that only our own float32 rounding counts.
TOLERANCE = 2e-5


@functools.cache
def _pairs():
  """All pairs of the file, uncut, by our pipeline."""
  data = DataSettings(max_length=8192, max_prompt_length=4096)
  pairs, report = load_pairs(data, load_tokenizer(str(smollm2_gguf())), (str(data_file()),), seed=0)
  assert report.kept == len(preference_data()) and not any(report.truncated.values())
  return pairs


def test_token_ids_equal_apply_chat_template():
  path = smollm2_gguf()
  tokenizer = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  # Of a GGUF, transformers has GPT-2's split; this is what the model's tokenizer.json says.
  tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [
      pre_tokenizers.Digits(individual_digits=True),
      pre_tokenizers.ByteLevel(add_prefix_space=False),
    ]
  )
  newline = tokenizer.encode("\n")

  def ids(messages, **options):
    return tokenizer.apply_chat_template(messages, return_dict=False, **options)

  for pair, row in zip(_pairs(), preference_data(), strict=True):
    messages = prompt_messages(row)
    prompt = ids(messages, add_generation_prompt=True)
    assert pair.prompt.tolist() == prompt, pair.id
    for side in ("chosen", "rejected"):
      whole = ids([*messages, {"role": "assistant", "content": row[side]["value"]}])
      # The template's newline after the end of the turn is nobody's to predict.
      assert [*prompt, *getattr(pair, side).tolist(), *newline] == whole, (pair.id, side)
      assert whole[-2] == tokenizer.eos_token_id


def test_step_equals_torch():
  # Those with the fewest tokens, for the time it takes, but with real responses.
  long_enough = [p for p in _pairs() if min(len(p.chosen), len(p.rejected)) >= MIN_RESPONSE]
  pairs = sorted(long_enough, key=pair_length)[:PAIRS]
  print([tuple(map(len, pair[1:])) for pair in pairs])
  shape = batch_shape(PAIRS, row_length=384, slots=4, rows=1)
  assert pack(pairs, shape).num_micro == 2, "rows are shared, and there are several"
  simpo = SimPOSettings(sft_weight=0.1)
  expected = reference(hf_smollm2().double(), pairs, **dataclasses.asdict(simpo))
  cfg, params = load(smollm2_gguf())
  grads, metrics = gradient_of_step(step_config(cfg, simpo, shape), params, pairs, shape)
  check_metrics(metrics, expected, pairs, TOLERANCE)
  check_close(simpo.beta * metrics.pairs.chosen, simpo.beta * expected.chosen, "rewards", TOLERANCE)
  check_close(metrics.grad_norm, expected.grad_norm, "gradient norm", TOLERANCE)
  check_grads(cfg, grads, expected, TOLERANCE)
