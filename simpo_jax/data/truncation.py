"""The two rules that cut a pair to `data.max_length`."""

import numpy as np

from simpo_jax.settings import DataSettings


def truncate(
  prompt: np.ndarray,
  chosen: np.ndarray,
  rejected: np.ndarray,
  bos_id: int | None,
  data: DataSettings,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
  """(prompt, chosen, rejected), int32 each, such that prompt + either fits max_length.

  "prompt_first": a pair that is too long loses the beginning of its prompt, down
  to max_prompt_length, but never its BOS; then each response on its own is cut
  to the rest. "princeton": as that paper's code does, the prompt keeps its last
  max_prompt_length tokens; if that does not suffice, both responses are cut to
  max_length - max_prompt_length, however short the prompt is. A response keeps
  its beginning and at least one token; one that is cut has no EOS.
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
