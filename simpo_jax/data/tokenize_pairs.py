"""From a row to token ids: tokenised, truncated, or left out for a reason.

The boundary between prompt and response. Prompt and response are tokenised
together, because that is the text the model sees, and the prompt is what the
ids of the prompt alone and of both whole texts have in common. Where the
template ends the prompt with a special token or the tokenizer splits there,
that is exactly the prompt's own ids. Where a merge crosses the boundary, the
crossing token belongs to the responses: it is predicted, so it is trained. Both
responses share one prompt, so the shorter common part counts for both.
"""

from typing import Any, NamedTuple

import numpy as np

from simpo_jax.arith import common_prefix
from simpo_jax.data.row_files import Malformed
from simpo_jax.data.row_formats import Conversation, SkipRow, check_texts, to_conversation
from simpo_jax.data.truncation import truncate
from simpo_jax.data.types import PairTokens
from simpo_jax.settings import DataSettings
from simpo_jax.tokenizer.chat_template import TemplateFailed
from simpo_jax.tokenizer.tokenizer import Tokenizer, encode_with_bos
from simpo_jax.train.batch import row_length


class Read(NamedTuple):
  """What a row gave: a pair, of which the parts `cut` were cut, or None and the reason."""

  id: str
  pair: PairTokens | None
  skipped: str | None
  cut: tuple[str, ...]


CUTS = ("prompt", "chosen", "rejected")


def read_row(
  row_id: str, row: dict[str, Any] | Malformed, tokenizer: Tokenizer, data: DataSettings
) -> Read:
  """The pair of a row, or why there is none."""
  try:
    if isinstance(row, Malformed):
      raise SkipRow(row.reason)
    whole = encode_pair(to_conversation(row), tokenizer, data.header, row_id)
    pair = fit_pair(whole, tokenizer, data)
  except SkipRow as skip:
    return Read(row_id, None, skip.reason, ())
  cut = tuple(n for n in CUTS if len(getattr(pair, n)) < len(getattr(whole, n)))
  return Read(row_id, pair, None, cut)


def encode_pair(
  conversation: Conversation, tokenizer: Tokenizer, header: str, id: str = ""
) -> PairTokens:
  """The ids of a pair at full length; raises SkipRow.

  The chat template is applied once to the prompt and once to each answered
  prompt; plain strings never see it. header: the assistant header that the
  template writes before an answer is part of the "prompt" or of the "response".
  """
  check_texts(conversation)
  prompt_text, *texts = _texts(conversation, tokenizer, header)
  prompt_ids = encode_with_bos(tokenizer, prompt_text)
  ids = [encode_with_bos(tokenizer, text) for text in texts]
  boundary = min(common_prefix(prompt_ids, i) for i in ids)
  if not boundary:
    raise SkipRow("empty_prompt")
  chosen, rejected = (_end_once(i[boundary:], tokenizer) for i in ids)
  for name, response in (("chosen", chosen), ("rejected", rejected)):
    if len(response) < 2:
      raise SkipRow(f"empty_{name}")
  as_array = lambda x: np.asarray(x, np.int32)  # noqa: E731
  return PairTokens(id, as_array(prompt_ids[:boundary]), as_array(chosen), as_array(rejected))


def _texts(conversation: Conversation, tokenizer: Tokenizer, header: str) -> list[str]:
  """The text of the prompt, and of the prompt with each answer."""
  prompt, *responses = conversation
  if isinstance(prompt, str):
    return [tokenizer.escape(prompt + response) for response in ("", *responses)]
  try:
    start = tokenizer.render(prompt, header == "prompt")
    answers = [{"role": "assistant", "content": response} for response in responses]
    whole = [tokenizer.render((*prompt, answer), False) for answer in answers]
  except TemplateFailed as error:
    raise SkipRow("template_failed") from error
  if not all(text.startswith(start) for text in whole):
    raise SkipRow("template_not_prefix")
  return [start, *whole]


def _end_once(ids: list[int], tokenizer: Tokenizer) -> list[int]:
  """The response up to the first EOS of its tail, or with one EOS appended.

  The tail is what follows the last token with visible text: templates write a
  newline there, and some a second EOS of another kind.
  """
  tail = len(ids)
  while tail and (ids[tail - 1] in tokenizer.eos_ids or _is_blank(ids[tail - 1], tokenizer)):
    tail -= 1
  for i in range(tail, len(ids)):
    if ids[i] in tokenizer.eos_ids:
      return ids[: i + 1]
  return [*ids, tokenizer.eos_ids[0]]


def _is_blank(token: int, tokenizer: Tokenizer) -> bool:
  return not tokenizer.decode([token]).strip()


def fit_pair(pair: PairTokens, tokenizer: Tokenizer, data: DataSettings) -> PairTokens:
  """A pair cut to `data.max_length`; raises SkipRow if none is left."""
  cut = PairTokens(pair.id, *truncate(*pair[1:], tokenizer.bos_id, data))
  if np.array_equal(cut.chosen, cut.rejected):
    raise SkipRow("identical")
  if sum(map(len, cut[1:])) > row_length(data):
    raise SkipRow("longer_than_row")
  return cut
