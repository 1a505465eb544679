"""Packs the pairs of one step into rows that share each pair's prompt.

A pair lies in its row as `[chosen reversed | prompt | rejected]`, with explicit
rotary positions. Then every token sees one contiguous range of keys: chosen token
i sees [itself, end of prompt), prompt and rejected tokens see [start of prompt,
themselves]. A mask is two integers per token, whatever shares the row.
"""

import bisect
from typing import NamedTuple

import numpy as np

from simpo_jax.data.pairs import PairTokens


class BatchShape(NamedTuple):
  """The fixed sizes of a step's batch."""

  micro: int  # M, micro-batches: enough for one pair a row
  rows: int  # R, packed rows per micro-batch, over all hosts
  row_length: int  # S
  slots: int  # G, pairs per row at most
  pairs: int  # pairs per step


class Batch(NamedTuple):
  """One step's packed rows, int32. U = S target entries per row; targets come first."""

  tokens: np.ndarray  # [M, R, S]
  positions: np.ndarray  # [M, R, S], rotary
  k_start: np.ndarray  # [M, R, S], first key that the token sees
  k_end: np.ndarray  # [M, R, S], one past the last
  target_index: np.ndarray  # [M, R, U], where in the row the target is predicted from
  target_id: np.ndarray  # [M, R, U], the response token, -1 for none
  target_seq: np.ndarray  # [M, R, U], 2 * slot + (0 chosen | 1 rejected), 2G for none
  pair: np.ndarray  # [M, R, G], the pair's number in the step, `pairs` for none
  num_micro: np.ndarray  # [], micro-batches in use; the rest is never computed


def batch_shape(pairs: int, row_length: int, slots: int, rows: int) -> BatchShape:
  """Sizes such that a step fits even if no two pairs can share a row."""
  return BatchShape(-(-pairs // rows), rows, row_length, slots, pairs)


def empty_batch(shape: BatchShape, own: range | None = None) -> Batch:
  """A batch of padding: each token sees itself alone, and nothing is a target.

  Args:
    own: the rows of each micro-batch that it holds; None for all.
  """
  M, R, S, G, B = shape
  R = R if own is None else len(own)
  own = np.broadcast_to(np.arange(S, dtype=np.int32), (M, R, S))
  return Batch(
    tokens=np.zeros((M, R, S), np.int32),
    positions=np.zeros((M, R, S), np.int32),
    k_start=own.copy(),
    k_end=own + 1,
    target_index=np.zeros((M, R, S), np.int32),
    target_id=np.full((M, R, S), -1, np.int32),
    target_seq=np.full((M, R, S), 2 * G, np.int32),
    pair=np.full((M, R, G), B, np.int32),
    num_micro=np.zeros((), np.int32),
  )


def pack(pairs: list[PairTokens], shape: BatchShape, own: range | None = None) -> Batch:
  """Packs up to `shape.pairs` pairs; see `assign_rows` and `lay_out`."""
  return lay_out(pairs, row_members(pairs, shape), shape, own)


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
  pairs: list[PairTokens], rows: list[list[int]], shape: BatchShape, own: range | None = None
) -> Batch:
  """The batch of these rows. Pair numbers are positions in `pairs`.

  Args:
    rows: from `row_members`.
    own: the rows of each micro-batch to fill, those of this host; None for all.
  """
  batch = empty_batch(shape, own)
  own = range(shape.rows) if own is None else own
  for number, members in enumerate(rows):
    micro, row = divmod(number, shape.rows)
    if row not in own:
      continue
    start = targets = 0
    for slot, index in enumerate(members):
      at = (micro, row - own.start)
      start, targets = _lay_out(batch, at, slot, index, pairs[index], start, targets)
  used = np.asarray(-(-len(rows) // shape.rows), np.int32)
  return batch._replace(num_micro=used)


def pair_length(pair: PairTokens) -> int:
  """Row tokens that a pair takes: its prompt once, and both responses."""
  return len(pair.prompt) + len(pair.chosen) + len(pair.rejected)


def assign_rows(lengths: list[int], row_length: int, slots: int) -> list[list[int]]:
  """Best-fit decreasing: the members of each row, as indices into `lengths`; deterministic."""
  rows: list[list[int]] = []
  open_rows: list[tuple[int, int]] = []  # (room, row) of those that may take more, in order
  for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
    length = lengths[index]
    if length > row_length:
      raise ValueError(f"a pair of {length} tokens for rows of {row_length}")
    place = bisect.bisect_left(open_rows, (length, 0))
    if place < len(open_rows):
      room, row = open_rows.pop(place)
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
