"""Tokenizes and truncates a row, or skips it with a reason.

Prompt and response are tokenized together, as the model sees them. The prompt's tokens are the
longest common prefix of the ids of the prompt alone and of both full texts. If the template ends
the prompt with a special token, or the tokenizer splits there, these are exactly the ids of the
prompt. If a BPE merge crosses the boundary, the crossing token belongs to the response, and is
trained. Both responses share one prompt, so that the shorter common prefix counts for both.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from simpo_jax.arith import common_prefix
from simpo_jax.data.rendering import Turns, render_pair
from simpo_jax.data.row_files import Malformed
from simpo_jax.data.rows.formats import Conversation, check_texts, to_conversation
from simpo_jax.data.rows.read import split_answers
from simpo_jax.data.rows.reasons import SkipRow
from simpo_jax.data.truncation import truncate
from simpo_jax.data.types import PairTokens
from simpo_jax.settings import DataSettings
from simpo_jax.tokenizer.tokenizer import NoEmbedding, Tokenizer, encode_with_bos
from simpo_jax.train.batch import row_length


class RowResult(NamedTuple):
  """The pair of a row, or None and the reason for skipping it.

  Attributes:
    id: of the row; if it is skipped, with what is wrong in it, for the user.
    skipped: a key of `reasons.REASONS`.
    truncated: which of PAIR_PARTS were truncated.
    notes: facts that the user should know; see `read.Row`.
  """

  id: str
  pair: PairTokens | None
  skipped: str | None = None
  truncated: tuple[str, ...] = ()
  notes: tuple[str, ...] = ()


PAIR_PARTS = ("prompt", "chosen", "rejected")


def read_pairs(
  row_id: str, row: dict[str, Any] | Malformed, tokenizer: Tokenizer, data: DataSettings
) -> Iterator[RowResult]:
  """Yields the pairs of a row: one for each of its rejected answers."""
  for pair_id, part in split_answers(row_id, row):
    yield read_row(pair_id, part, tokenizer, data)


def read_row(
  row_id: str, row: dict[str, Any] | Malformed, tokenizer: Tokenizer, data: DataSettings
) -> RowResult:
  """Tokenizes and truncates the pair of a row."""
  try:
    if isinstance(row, Malformed):
      raise SkipRow(row.reason)
    conversation = to_conversation(row)
    full, notes = encode_pair(conversation, tokenizer, data.header, row_id)
    pair = fit_pair(full, tokenizer, data)
  except SkipRow as skip:
    return RowResult(skipped_id(row_id, skip), None, skip.reason)
  truncated = tuple(n for n in PAIR_PARTS if len(getattr(pair, n)) < len(getattr(full, n)))
  return RowResult(row_id, pair, None, truncated, (*conversation.notes, *notes))


def skipped_id(row_id: str, skip: SkipRow) -> str:
  """Formats a row id with the details of why the row is skipped."""
  return f"{row_id} ({skip.detail})" if skip.detail else row_id


def encode_pair(
  conversation: Conversation, tokenizer: Tokenizer, header: str, id: str = ""
) -> tuple[PairTokens, tuple[str, ...]]:
  """Tokenizes a pair at full length; raises SkipRow.

  The chat template is applied to the prompt, and to the prompt with each response; it is not
  applied to plain strings.

  Args:
    header: "prompt" or "response", whichever includes the assistant header of the template.
    id: the row id.

  Returns:
    (pair, notes); see `RowResult`.
  """
  check_texts(conversation)
  rendered = render_pair(conversation, tokenizer, header)
  prompt_ids = _encode(rendered.prompt, tokenizer)
  responses = rendered.chosen, rendered.rejected
  ids = [_encode(turns.text, tokenizer) for turns in responses]
  boundary = min(common_prefix(prompt_ids, i) for i in ids)
  if not boundary:
    raise SkipRow("empty_prompt")
  is_text = isinstance(conversation.prompt, str)
  end = tokenizer.eos_ids[0] if is_text else tokenizer.turn_end
  chosen, rejected = (
    _response(i, boundary, turns, end, tokenizer) for i, turns in zip(ids, responses, strict=True)
  )
  has_header = rendered.opened != rendered.prompt
  opened = _encode(rendered.opened, tokenizer) if has_header else prompt_ids
  for name, i, response in zip(PAIR_PARTS[1:], ids, (chosen, rejected), strict=True):
    after_header = response[max(common_prefix(opened, i) - boundary, 0) :]
    if all(_is_tail(token, tokenizer) for token in after_header.tolist() if token >= 0):
      as_shown = "" if isinstance(conversation.prompt, str) else "as the chat template shows it"
      raise SkipRow(f"empty_{name}", as_shown)
  prompt = np.asarray(prompt_ids[:boundary], np.int32)
  return PairTokens(id, prompt, chosen, rejected), rendered.notes


def _encode(text: str, tokenizer: Tokenizer) -> list[int]:
  """Encodes a text that starts a sequence; raises SkipRow."""
  try:
    return encode_with_bos(tokenizer, text)
  except NoEmbedding as error:
    raise SkipRow("no_embedding", error.token) from error


def _response(
  ids: list[int], boundary: int, turns: Turns, end: int, tokenizer: Tokenizer
) -> np.ndarray:
  """The ids after the boundary, those outside of the assistant's turns as ~id; see `_end_once`."""
  response = np.asarray(_end_once(ids[boundary:], end, tokenizer), np.int32)
  if len(turns.spans) == 1:
    return response
  trained = np.zeros(len(response), bool)
  for span in turns.spans:
    first, last = (_prefix_length(text, ids, tokenizer) - boundary for text in span)
    if span[1] == turns.text:
      last = len(response)
    else:
      last = first + len(_cut_tail(response[first:last].tolist(), tokenizer))
    trained[max(first, 0) : last] = True
  return np.where(trained, response, ~response)


def _prefix_length(text: str, ids: list[int], tokenizer: Tokenizer) -> int:
  """The number of tokens that a prefix of a text shares with the whole text's ids."""
  return common_prefix(_encode(text, tokenizer), ids)


def _end_once(ids: list[int], end: int, tokenizer: Tokenizer) -> list[int]:
  """Truncates a response after the first EOS of its tail, or appends `end`.

  The tail follows the last token with visible text: templates write a newline there, and some of
  them a second, different EOS.
  """
  cut = _cut_tail(ids, tokenizer)
  ended = bool(cut) and cut[-1] in tokenizer.eos_ids
  return cut if ended else [*cut, end]


def _cut_tail(ids: list[int], tokenizer: Tokenizer) -> list[int]:
  """Truncates a turn after the first EOS of its tail, if there is one."""
  tail = len(ids)
  while tail and _is_tail(ids[tail - 1], tokenizer):
    tail -= 1
  for i in range(tail, len(ids)):
    if ids[i] in tokenizer.eos_ids:
      return ids[: i + 1]
  return ids


def _is_tail(token: int, tokenizer: Tokenizer) -> bool:
  """Whether a token may follow the last visible text: an EOS, or one without visible text."""
  return token in tokenizer.eos_ids or not tokenizer.decode([token]).strip()


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
