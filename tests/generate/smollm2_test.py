"""Greedy generation of SmolLM2-135M on real prompts, against transformers' generate."""

import functools

import numpy as np
import pytest

from simpo_jax.data.types import Prompt
from simpo_jax.generate.stop_automaton import stop_automaton
from simpo_jax.generate.types import FINISH_REASONS
from simpo_jax.tokenizer.load import load_tokenizer
from simpo_jax.tokenizer.tokenizer import encode_with_bos
from support.generation import Generation, settings
from support.hf_models import hf_smollm2, load, our_logits
from support.real_data import preference_data, prompt_messages
from support.real_model import smollm2_gguf

pytestmark = [pytest.mark.model, pytest.mark.slow]

torch = pytest.importorskip("torch")

PROMPTS = 8
MAX_PROMPT = 300
NEW_TOKENS = 64
# Either implementation rounds its logits, which reach 40, in float32: where the best two
# are this near, either may come first.
TIE = 2e-4
SAME_LOGITS = 1e-4
LOGPROB_SUM = 1e-3  # over 64 tokens


@functools.cache
def _tokenizer():
  return load_tokenizer(str(smollm2_gguf()))


@functools.cache
def _prompts():
  """Real prompts from the shortest to the longest that fits, evenly spaced."""
  rendered = (_tokenizer().render(prompt_messages(row), True) for row in preference_data())
  ids = sorted((encode_with_bos(_tokenizer(), text) for text in rendered), key=len)
  ids = [x for x in ids if len(x) <= MAX_PROMPT]
  chosen = np.linspace(0, len(ids) - 1, PROMPTS).round().astype(int)
  return [Prompt(i, "", np.asarray(ids[n], np.int32)) for i, n in enumerate(chosen)]


def _ours(model, stop_ids):
  """Tokens, finish reason and log-probability of each prompt's answer, all at once."""
  cfg, params = model
  config = settings(max_new_tokens=NEW_TOKENS, page_size=16, prefill_chunk=64)
  generation = Generation(cfg, _prompts(), config, stop_automaton(cfg.vocab_size, stop_ids))
  assert generation.shape.slots == PROMPTS
  assert generation.shape.prompt_tokens > 4 * generation.shape.chunk
  answers = generation(params)
  tokens, reasons, logprobs = zip(*(answers[n, 0] for n in range(PROMPTS)), strict=True)
  return tokens, [FINISH_REASONS[r] for r in reasons], [float(x.sum()) for x in logprobs]


def _transformers(prompts, stop_ids):
  """Answers, each up to its first stop token; their log-probabilities; logits `[64, N, V]`."""
  net = hf_smollm2().float()
  prompts = [p.tokens for p in prompts]
  ids = torch.zeros((len(prompts), max(map(len, prompts))), dtype=torch.long)  # padded on the left
  present = torch.zeros_like(ids)
  for row, mask, prompt in zip(ids, present, prompts, strict=True):
    row[-len(prompt) :] = torch.from_numpy(prompt)
    mask[-len(prompt) :] = 1
  net.generation_config.eos_token_id = list(stop_ids) or None
  net.generation_config.pad_token_id = 0
  out = net.generate(
    ids,
    attention_mask=present,
    do_sample=False,
    max_new_tokens=NEW_TOKENS,
    return_dict_in_generate=True,
    output_logits=True,
  )
  answers = out.sequences[:, ids.shape[1] :].tolist()
  answers = [next((a[: i + 1] for i, t in enumerate(a) if t in stop_ids), a) for a in answers]
  # torch's float32 log_softmax is off by 1e-5 over such a vocabulary: float64.
  logps = [x.double().log_softmax(-1).numpy() for x in out.logits]
  sums = [sum(logps[i][n, t] for i, t in enumerate(a)) for n, a in enumerate(answers)]
  return answers, sums, out.logits


def _is_tie(model, prompt, mine, theirs, logits):
  """Whether the first tokens that differ are the best two in both, as good as equal."""
  at = next(i for i, (a, b) in enumerate(zip(mine, theirs, strict=False)) if a != b)
  context = np.asarray([[*prompt.tokens, *mine[:at]]], np.int32)
  cfg, params = model
  our = our_logits(cfg, params, context)[0, -1]
  their = logits[at].numpy()
  print(f"prompt {prompt.index} parts at token {at}")
  best = [mine[at], theirs[at]]
  return (
    set(np.argsort(our)[-2:]) == set(np.argsort(their)[-2:]) == set(best)
    and abs(our[best[0]] - our[best[1]]) < TIE
    and abs(their[best[0]] - their[best[1]]) < TIE
    and np.abs(our - their)[best].max() <= SAME_LOGITS
  )


def _check(model, prompts, tokens, logprobs, stop_ids):
  """The same tokens and log-probabilities as transformers', or else a tie."""
  answers, sums, logits = _transformers(prompts, stop_ids)
  for n, (prompt, mine, theirs) in enumerate(zip(prompts, tokens, answers, strict=True)):
    if mine != theirs:
      assert _is_tie(model, prompt, mine, theirs, [step[n] for step in logits]), (n, mine, theirs)
      continue
    print(
      f"prompt {prompt.index}: {len(mine)} tokens, off by {logprobs[n] - sums[n]:.1e} "
      f"of log-probability {logprobs[n]:.4f}"
    )
    np.testing.assert_allclose(logprobs[n], sums[n], atol=LOGPROB_SUM, rtol=0)


def test_greedy_generation_equals_transformers():
  model, stop_ids = load(smollm2_gguf()), _tokenizer().eos_ids
  free, reasons, logprobs = _ours(model, ())
  assert reasons == ["length"] * PROMPTS and {len(t) for t in free} == {NEW_TOKENS}
  _check(model, _prompts(), free, logprobs, ())

  stopping = [n for n, tokens in enumerate(free) if set(tokens) & set(stop_ids)]
  assert 0 < len(stopping) < PROMPTS, "these prompts give both"
  tokens, reasons, logprobs = _ours(model, stop_ids)
  for n in range(PROMPTS):
    assert reasons[n] == ("stop" if n in stopping else "length")
    assert tokens[n] == free[n][: len(tokens[n])]
  _check(
    model,
    [_prompts()[n] for n in stopping],
    [tokens[n] for n in stopping],
    [logprobs[n] for n in stopping],
    stop_ids,
  )
