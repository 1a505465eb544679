"""The two rules that cut a pair to `data.max_length`."""

import difflib

import numpy as np
from ml_collections import ConfigDict

from simpo_jax.errors import UserError

RULES = ("prompt_first", "princeton")
HEADERS = ("prompt", "response")


def check_lengths(data: ConfigDict) -> None:
  """Raises UserError if the lengths, the truncation rule or the header make no sense."""
  for field, names in (("truncation", RULES), ("header", HEADERS)):
    if data[field] not in names:
      close = difflib.get_close_matches(str(data[field]), names, n=1, cutoff=0.0)
      raise UserError(
        f"data.{field} is {data[field]!r}; it must be one of {', '.join(names)}"
        f" (did you mean {close[0]}?)"
      )
  if not 1 <= data.max_prompt_length < data.max_length:
    raise UserError(
      f"data.max_prompt_length={data.max_prompt_length} must be at least 1 and below"
      f" data.max_length={data.max_length}, to leave room for a response"
    )
  if not 0 <= data.max_skip_fraction <= 1:
    raise UserError(f"data.max_skip_fraction={data.max_skip_fraction} must be within 0 and 1")
  if data.row_length < 0:
    raise UserError(f"data.row_length={data.row_length} must be 0 (automatic) or positive")


def truncate(
  prompt: np.ndarray,
  chosen: np.ndarray,
  rejected: np.ndarray,
  bos_id: int | None,
  data: ConfigDict,
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
