"""The two truncation modes of `data.truncation`."""

import numpy as np

from simpo_jax.settings import DataSettings


def truncate(
  prompt: np.ndarray,
  chosen: np.ndarray,
  rejected: np.ndarray,
  bos_id: int | None,
  data: DataSettings,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """Truncates a pair so that prompt + either response fits `data.max_length` tokens.

  "prompt_first": the prompt of a pair that is too long is truncated on the left to
  max_prompt_length tokens, keeping its BOS; then each response is truncated on the right to the
  remaining length. "princeton", as in princeton-nlp/SimPO: the prompt keeps its last
  max_prompt_length tokens; if the pair is still too long, both responses are truncated to
  max_length - max_prompt_length tokens, even if the prompt is shorter. A truncated response has at
  least one token and no EOS.

  Args:
    prompt, chosen, rejected: int32 arrays of ids, of any lengths.
    bos_id: None if the tokenizer has no BOS.

  Returns:
    (prompt, chosen, rejected), int32.
  """
  longest = max(len(chosen), len(rejected))
  if len(prompt) + longest <= data.max_length:
    return prompt, chosen, rejected
  if data.truncation == "princeton":
    prompt = prompt[-data.max_prompt_length :]
    if len(prompt) + longest <= data.max_length:
      return prompt, chosen, rejected
    room = data.max_length - data.max_prompt_length
  else:
    prompt = _keep_end(prompt, data.max_prompt_length, bos_id)
    room = data.max_length - len(prompt)
  return prompt, chosen[:room], rejected[:room]


def _keep_end(prompt: np.ndarray, length: int, bos_id: int | None) -> np.ndarray:
  if len(prompt) <= length:
    return prompt
  if bos_id is None or prompt[0] != bos_id:
    return prompt[-length:]
  return np.concatenate([prompt[:1], prompt[len(prompt) - (length - 1) :]])
