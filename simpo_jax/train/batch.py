"""The input of a training step: packed rows of fixed shapes."""

from typing import NamedTuple

import numpy as np

from simpo_jax.settings import DataSettings


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


def empty_batch(shape: BatchShape, local: range | None = None) -> Batch:
  """A batch of padding: each token sees itself alone, and nothing is a target.

  Args:
    local: the rows of each micro-batch that it holds; None for all.
  """
  M, R, S, G, B = shape
  R = R if local is None else len(local)
  local = np.broadcast_to(np.arange(S, dtype=np.int32), (M, R, S))
  return Batch(
    tokens=np.zeros((M, R, S), np.int32),
    positions=np.zeros((M, R, S), np.int32),
    k_start=local.copy(),
    k_end=local + 1,
    target_index=np.zeros((M, R, S), np.int32),
    target_id=np.full((M, R, S), -1, np.int32),
    target_seq=np.full((M, R, S), 2 * G, np.int32),
    pair=np.full((M, R, G), B, np.int32),
    num_micro=np.zeros((), np.int32),
  )


def row_length(data: DataSettings) -> int:
  """S, tokens of a packed row; automatically, so many that any pair fits."""
  return data.row_length or 2 * data.max_length
