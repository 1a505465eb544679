"""Packs the pairs of one step into rows in which both responses share the prompt.

A pair is laid out as `[chosen reversed | prompt | rejected]`, with explicit rotary positions, so
that every token attends to one contiguous range of keys: a chosen token to [itself, end of prompt),
prompt and rejected tokens to [start of prompt, themselves]. The attention mask is two integers per
token, however many pairs share the row.
"""

import bisect
from collections.abc import Sequence

import numpy as np

from simpo_jax.arith import ceil_div
from simpo_jax.data.types import PairTokens
from simpo_jax.program.ledger import Contents, contents
from simpo_jax.train.batch import Batch, BatchShape, empty_batch


def pack(pairs: list[PairTokens], shape: BatchShape, local: range | None = None) -> Batch:
  """Packs up to `shape.pairs` pairs into a batch; see `row_members` and `lay_out`."""
  return lay_out(pairs, row_members(pairs, shape), shape, local)


def row_members(pairs: list[PairTokens], shape: BatchShape) -> list[list[int]]:
  """Assigns pairs to rows by their lengths alone, so that all hosts agree.

  Returns:
    For each row, its pairs as indices into `pairs`.

  Raises:
    ValueError: a pair is longer than a row, or there are more pairs than the shape holds; data
      loading prevents both.
  """
  if len(pairs) > shape.pairs:
    raise ValueError(f"{len(pairs)} pairs for a batch of {shape.pairs}")
  return assign_rows([pair_length(p) for p in pairs], shape.row_length, shape.slots)


def lay_out(
  pairs: list[PairTokens], rows: list[list[int]], shape: BatchShape, local: range | None = None
) -> Batch:
  """Builds the batch (numpy arrays); its pair numbers are indices into `pairs`.

  Args:
    rows: from `row_members`.
    local: the rows of each micro-batch that this host holds; None: all.
  """
  batch = empty_batch(shape, local)
  local = range(shape.rows) if local is None else local
  for number, members in enumerate(rows):
    micro, row = divmod(number, shape.rows)
    if row not in local:
      continue
    start = targets = 0
    for slot, index in enumerate(members):
      at = (micro, row - local.start)
      start, targets = _lay_out(batch, at, slot, index, pairs[index], start, targets)
  used = np.asarray(ceil_div(len(rows), shape.rows), np.int32)
  return batch._replace(num_micro=used)


def pair_length(pair: PairTokens) -> int:
  """Returns the tokens that a pair occupies in a row: its prompt once and both responses."""
  return len(pair.prompt) + len(pair.chosen) + len(pair.rejected)


def pair_contents(pairs: Sequence[PairTokens]) -> Contents:
  """Returns the digests of the pairs for the ledger; see `Contents`."""
  return contents((f"pair {pair.id}", pair) for pair in pairs)


def assign_rows(lengths: list[int], row_length: int, slots: int) -> list[list[int]]:
  """Bin packing by best-fit decreasing; deterministic.

  Args:
    lengths: tokens of each pair.
    row_length: tokens of a row.
    slots: maximum pairs per row.

  Returns:
    The members of each row, as indices into `lengths`.
  """
  rows: list[list[int]] = []
  open_rows: list[tuple[int, int]] = []  # sorted (free tokens, row)
  for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
    length = lengths[index]
    if length > row_length:
      raise ValueError(f"a pair of {length} tokens for rows of {row_length}")
    position = bisect.bisect_left(open_rows, (length, 0))
    if position < len(open_rows):
      free, row = open_rows.pop(position)
    else:
      free, row = row_length, len(rows)
      rows.append([])
    rows[row].append(index)
    if len(rows[row]) < slots:
      bisect.insort(open_rows, (free - length, row))
  return rows


def _lay_out(
  batch: Batch,
  at: tuple[int, int],
  slot: int,
  index: int,
  pair: PairTokens,
  start: int,
  targets: int,
) -> tuple[int, int]:
  """Writes one pair from row offset `start`; returns the next free offset and target."""
  n_chosen, n_prompt, n_rejected = len(pair.chosen), len(pair.prompt), len(pair.rejected)
  prompt = start + n_chosen  # where the prompt begins
  rejected = prompt + n_prompt
  end = rejected + n_rejected
  here = np.arange(start, end, dtype=np.int32)

  span = (*at, slice(start, end))
  ids = np.concatenate([pair.chosen[::-1], pair.prompt, pair.rejected])
  batch.tokens[span] = np.where(ids < 0, ~ids, ids)
  after_prompt = n_prompt + np.arange(max(n_chosen, n_rejected))
  batch.positions[span] = np.concatenate(
    [after_prompt[:n_chosen][::-1], np.arange(n_prompt), after_prompt[:n_rejected]]
  )
  is_chosen = here < prompt
  batch.k_start[span] = np.where(is_chosen, here, prompt)
  batch.k_end[span] = np.where(is_chosen, rejected, here + 1)

  # The first token of each response is predicted at the prompt's last position, later ones at
  # their predecessor's, which is to the right in the reversed part.
  last = rejected - 1
  predictors = ([last, *range(prompt - 1, start, -1)], [last, *range(rejected, end - 1)])
  for side, (ids, where) in enumerate(zip((pair.chosen, pair.rejected), predictors, strict=True)):
    trained = ids >= 0
    count = int(trained.sum())
    span = (*at, slice(targets, targets + count))
    batch.target_index[span] = np.asarray(where)[trained]
    batch.target_id[span] = ids[trained]
    batch.target_seq[span] = 2 * slot + side
    targets += count
  batch.pair[(*at, slot)] = index
  return end, targets
