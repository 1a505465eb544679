"""From rows to token ids: tokenise, truncate, count what is left out, choose batches.

The boundary between prompt and response. Prompt and response are tokenised
together, because that is the text the model sees, and the prompt is what the
ids of the prompt alone and of both whole texts have in common. Where the
template ends the prompt with a special token or the tokenizer splits there,
that is exactly the prompt's own ids. Where a merge crosses the boundary, the
crossing token belongs to the responses: it is predicted, so it is trained. Both
responses share one prompt, so the shorter common part counts for both.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from simpo_jax.data.embedded import embedded_pairs
from simpo_jax.data.forms import Conversation, SkipRow, check_texts, to_conversation
from simpo_jax.data.prepared import HELD_OUT, is_prepared, open_prepared
from simpo_jax.data.skips import SkipReport, add_row, why
from simpo_jax.data.sources import Malformed, read_rows
from simpo_jax.data.template import TemplateFailed
from simpo_jax.data.tokenizer import Tokenizer, encode_with_bos
from simpo_jax.data.truncation import check_lengths, truncate
from simpo_jax.errors import UserError


class PairTokens(NamedTuple):
  """One pair. The prompt has at least one token; responses end with an EOS unless cut."""

  id: str
  prompt: np.ndarray  # int32[P]
  chosen: np.ndarray  # int32[C]
  rejected: np.ndarray  # int32[R]


class Read(NamedTuple):
  """What a row gave: a pair, of which the parts `cut` were cut, or None and the reason."""

  id: str
  pair: PairTokens | None
  skipped: str | None
  cut: tuple[str, ...]


CUTS = ("prompt", "chosen", "rejected")


def row_length(data: ConfigDict) -> int:
  """Tokens of a packed row; automatically, so many that any pair fits."""
  return data.row_length or 2 * data.max_length


def tokenize_pair(
  conversation: Conversation, tokenizer: Tokenizer, data: ConfigDict, id: str = ""
) -> PairTokens:
  """The ids of a pair, cut to `data.max_length`; raises SkipRow (and see `check_lengths`)."""
  return _fit(encode_pair(conversation, tokenizer, data.header, id), tokenizer, data)


def load_pairs(
  data: ConfigDict, tokenizer: Tokenizer, paths: Sequence[str], seed: int
) -> tuple[list[PairTokens], SkipReport]:
  """Every usable pair of the files, in order, and the count of the others.

  Args:
    data: the section `data` of the config.
    tokenizer: for the rows' text.
    paths: files, prepared datasets (their split "test" if none is named), or "embedded"
      for `data.embedded_pairs` generated ones.
    seed: for the generated ones.

  Raises:
    UserError: a file or setting is wrong, no row can be used, or more than
      `data.max_skip_fraction` of them cannot.
  """
  check_lengths(data)
  paths = (paths,) if isinstance(paths, str) else tuple(paths)
  if not paths:
    raise UserError('no preference data; set data.train to files or to ("embedded",)')
  pairs, report = [], SkipReport(0, 0, {}, dict.fromkeys(CUTS, 0), {})
  for path in paths:
    for row_id, row in _rows(path, data, seed):
      read = read_row(row_id, row, tokenizer, data)
      report = add_row(report, read.id, read.skipped, read.cut)
      if read.pair is not None:
        pairs.append(read.pair)
  _check_skips(report, data.max_skip_fraction, paths)
  return pairs, report


def read_row(row_id: str, row, tokenizer: Tokenizer, data: ConfigDict) -> Read:
  """The pair of a row, or why there is none."""
  try:
    if isinstance(row, Malformed):
      raise SkipRow(row.reason)
    whole = encode_pair(to_conversation(row), tokenizer, data.header, row_id)
    pair = _fit(whole, tokenizer, data)
  except SkipRow as skip:
    return Read(row_id, None, skip.reason, ())
  cut = tuple(n for n in CUTS if len(getattr(pair, n)) < len(getattr(whole, n)))
  return Read(row_id, pair, None, cut)


def split_pairs(
  pairs: Sequence[PairTokens], fraction: float, seed: int
) -> tuple[list[PairTokens], list[PairTokens]]:
  """(train, held out), each in the given order; the same for a seed.

  At least one pair is held out if `fraction` > 0 and there are two, and at
  least one stays. Raises UserError for a fraction outside [0, 1).
  """
  if not 0 <= fraction < 1:
    raise UserError(f"data.eval_fraction must be at least 0 and below 1, not {fraction}")
  n = len(pairs)
  count = min(max(1, round(n * fraction)), n - 1) if fraction and n > 1 else 0
  held = set(_permutation(n, "split", seed, 0)[:count].tolist())
  return [p for i, p in enumerate(pairs) if i not in held], [pairs[i] for i in sorted(held)]


def epoch_order(n: int, seed: int, epoch: int) -> np.ndarray:
  """int64[n]: the order of the n pairs in an epoch (from 0), a permutation."""
  return _permutation(n, "epoch", seed, epoch)


def pair_indices_for_step(
  n: int, batch_size: int, seed: int, step: int, steps: int = 1
) -> np.ndarray:
  """int64[steps * batch_size]: the pairs of a step (from 1) and of those that follow it.

  A function of its arguments alone.

  Steps walk through epochs without a gap: a batch may end one and begin the
  next. Raises UserError if there are fewer pairs than a batch holds.
  """
  if n < batch_size:
    raise UserError(
      f"{n} pairs do not fill a batch of {batch_size}; lower train.batch_size or add data"
    )
  epochs, places = np.divmod(np.arange(steps * batch_size) + (step - 1) * batch_size, n)
  orders = {int(e): epoch_order(n, seed, int(e)) for e in np.unique(epochs)}
  return np.array([orders[int(e)][p] for e, p in zip(epochs, places, strict=True)], np.int64)


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
  boundary = min(_common_prefix(prompt_ids, i) for i in ids)
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


def _common_prefix(a: list[int], b: list[int]) -> int:
  for i, (x, y) in enumerate(zip(a, b, strict=False)):
    if x != y:
      return i
  return min(len(a), len(b))


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


def _fit(pair: PairTokens, tokenizer: Tokenizer, data: ConfigDict) -> PairTokens:
  cut = PairTokens(pair.id, *truncate(*pair[1:], tokenizer.bos_id, data))
  if np.array_equal(cut.chosen, cut.rejected):
    raise SkipRow("identical")
  if sum(map(len, cut[1:])) > row_length(data):
    raise SkipRow("longer_than_row")
  return cut


def _rows(path: str, data: ConfigDict, seed: int):
  if is_prepared(path):
    prepared = open_prepared(path, data.dir, HELD_OUT)
    return (prepared.read(i) for i in range(len(prepared)))
  if path != "embedded":
    return read_rows(path)
  rows = embedded_pairs(data.embedded_pairs, seed)
  return ((f"embedded:{i}", row) for i, row in enumerate(rows, start=1))


def _check_skips(report: SkipReport, limit: float, paths: Sequence[str]) -> None:
  lost = report.total - report.kept
  if report.kept and lost <= limit * report.total:
    return
  raise UserError(
    f"{lost} of {report.total} rows of {', '.join(paths)} cannot be used: {why(report)}; mend them"
    + (f", or raise data.max_skip_fraction={limit:g}" if report.kept else "")
  )


def _permutation(n: int, purpose: str, seed: int, epoch: int) -> np.ndarray:
  # Raw Philox bits, because numpy keeps those, unlike its shuffles, the same for
  # ever: a run resumed under another numpy sees the same batches.
  entropy = [*purpose.encode(), seed % 2**64, epoch]
  bits = np.random.Philox(np.random.SeedSequence(entropy)).random_raw(n)
  return np.argsort(bits, kind="stable")
