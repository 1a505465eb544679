"""Tokenizes and truncates a row, or skips it with a reason.

Prompt and response are tokenized together, as the model sees them. The prompt's tokens are the
longest common prefix of the ids of the prompt alone and of both full texts. If the template ends
the prompt with a special token, or the tokenizer splits there, these are exactly the ids of the
prompt. If a BPE merge crosses the boundary, the crossing token belongs to the response, and is
trained. Both responses share one prompt, so that the shorter common prefix counts for both.
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


class RowResult(NamedTuple):
  """The pair of a row, or None and the reason for skipping it."""

  id: str
  pair: PairTokens | None
  skipped: str | None  # a key of row_formats.REASONS
  truncated: tuple[str, ...]  # which of PAIR_PARTS were truncated


PAIR_PARTS = ("prompt", "chosen", "rejected")


def read_row(
  row_id: str, row: dict[str, Any] | Malformed, tokenizer: Tokenizer, data: DataSettings
) -> RowResult:
  """Tokenizes and truncates a row."""
  try:
    if isinstance(row, Malformed):
      raise SkipRow(row.reason)
    full = encode_pair(to_conversation(row), tokenizer, data.header, row_id)
    pair = fit_pair(full, tokenizer, data)
  except SkipRow as skip:
    return RowResult(row_id, None, skip.reason, ())
  truncated = tuple(n for n in PAIR_PARTS if len(getattr(pair, n)) < len(getattr(full, n)))
  return RowResult(row_id, pair, None, truncated)


def encode_pair(
  conversation: Conversation, tokenizer: Tokenizer, header: str, id: str = ""
) -> PairTokens:
  """Tokenizes a pair at full length; raises SkipRow.

  The chat template is applied to the prompt, and to the prompt with each response; it is not
  applied to plain strings.

  Args:
    header: "prompt" or "response", whichever includes the assistant header of the template.
    id: the row id.
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
  """The rendered prompt, and the rendered prompt with each response."""
  prompt, *responses = conversation
  if isinstance(prompt, str):
    return [tokenizer.escape(prompt + response) for response in ("", *responses)]
  try:
    start = tokenizer.render(prompt, header == "prompt")
    answers = [{"role": "assistant", "content": response} for response in responses]
    full = [tokenizer.render((*prompt, answer), False) for answer in answers]
  except TemplateFailed as error:
    raise SkipRow("template_failed") from error
  if not all(text.startswith(start) for text in full):
    raise SkipRow("template_not_prefix")
  return [start, *full]


def _end_once(ids: list[int], tokenizer: Tokenizer) -> list[int]:
  """Truncates a response after the first EOS of its tail, or appends an EOS.

  The tail follows the last token with visible text: templates write a newline there, and some of
  them a second, different EOS.
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
  """Truncates a pair to `data.max_length`.

  Raises:
    SkipRow: the responses become identical, or the pair is longer than a row.
  """
  truncated = PairTokens(pair.id, *truncate(*pair[1:], tokenizer.bos_id, data))
  if np.array_equal(truncated.chosen, truncated.rejected):
    raise SkipRow("identical")
  if sum(map(len, truncated[1:])) > row_length(data):
    raise SkipRow("longer_than_row")
  return truncated
