"""Packs the pairs of one step into rows that share each pair's prompt.

A pair lies in its row as `[chosen reversed | prompt | rejected]`, with explicit
rotary positions. Then every token sees one contiguous range of keys: chosen token
i sees [itself, end of prompt), prompt and rejected tokens see [start of prompt,
themselves]. A mask is two integers per token, whatever shares the row.
"""

import bisect
from collections.abc import Sequence

import numpy as np

from simpo_jax.data.types import PairTokens
from simpo_jax.program.ledger import Contents, contents
from simpo_jax.train.batch import Batch, BatchShape, empty_batch


def pack(pairs: list[PairTokens], shape: BatchShape, local: range | None = None) -> Batch:
  """Packs up to `shape.pairs` pairs; see `assign_rows` and `lay_out`."""
  return lay_out(pairs, row_members(pairs, shape), shape, local)


def row_members(pairs: list[PairTokens], shape: BatchShape) -> list[list[int]]:
  """Which pairs share each row of a step; the same on every host, from lengths alone.

  Raises:
    ValueError: a pair longer than a row, or more pairs than the shape holds
      (both are ruled out when data is loaded).
  """
  if len(pairs) > shape.pairs:
    raise ValueError(f"{len(pairs)} pairs for a batch of {shape.pairs}")
  return assign_rows([pair_length(p) for p in pairs], shape.row_length, shape.slots)


def lay_out(
  pairs: list[PairTokens], rows: list[list[int]], shape: BatchShape, local: range | None = None
) -> Batch:
  """The batch of these rows. Pair numbers are positions in `pairs`.

  Args:
    rows: from `row_members`.
    local: the rows of each micro-batch to fill, those of this host; None for all.
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
  used = np.asarray(-(-len(rows) // shape.rows), np.int32)
  return batch._replace(num_micro=used)


def pair_length(pair: PairTokens) -> int:
  """Row tokens that a pair takes: its prompt once, and both responses."""
  return len(pair.prompt) + len(pair.chosen) + len(pair.rejected)


def pair_contents(pairs: Sequence[PairTokens]) -> Contents:
  """What a batch of these pairs has in it; see `Contents`."""
  return contents((f"pair {pair.id}", pair) for pair in pairs)


def assign_rows(lengths: list[int], row_length: int, slots: int) -> list[list[int]]:
  """Best-fit decreasing: the members of each row, as indices into `lengths`; deterministic."""
  rows: list[list[int]] = []
  open_rows: list[tuple[int, int]] = []  # (room, row) of those that may take more, in order
  for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
    length = lengths[index]
    if length > row_length:
      raise ValueError(f"a pair of {length} tokens for rows of {row_length}")
    position = bisect.bisect_left(open_rows, (length, 0))
    if position < len(open_rows):
      room, row = open_rows.pop(position)
    else:
      room, row = row_length, len(rows)
      rows.append([])
    rows[row].append(index)
    if len(rows[row]) < slots:
      bisect.insort(open_rows, (room - length, row))
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
  batch.tokens[span] = np.concatenate([pair.chosen[::-1], pair.prompt, pair.rejected])
  after_prompt = n_prompt + np.arange(max(n_chosen, n_rejected))
  batch.positions[span] = np.concatenate(
    [after_prompt[:n_chosen][::-1], np.arange(n_prompt), after_prompt[:n_rejected]]
  )
  is_chosen = here < prompt
  batch.k_start[span] = np.where(is_chosen, here, prompt)
  batch.k_end[span] = np.where(is_chosen, rejected, here + 1)

  # The first token of either response is predicted from the prompt's last one,
  # each later one from its predecessor: to the right of it in the reversed part.
  last = rejected - 1
  predictors = ([last, *range(prompt - 1, start, -1)], [last, *range(rejected, end - 1)])
  for side, (ids, where) in enumerate(zip((pair.chosen, pair.rejected), predictors, strict=True)):
    span = (*at, slice(targets, targets + len(ids)))
    batch.target_index[span] = where
    batch.target_id[span] = ids
    batch.target_seq[span] = 2 * slot + side
    targets += len(ids)
  batch.pair[(*at, slot)] = index
  return end, targets
