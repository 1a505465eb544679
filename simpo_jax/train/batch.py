"""The input of a training step: packed rows of fixed shapes."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Array, Int32

from simpo_jax.arith import ceil_div
from simpo_jax.settings import DataSettings

AnyArray = Array | np.ndarray  # on devices, or on the host


class BatchShape(NamedTuple):
  """The fixed sizes of a step's batch."""

  micro: int  # micro-batches: enough for the worst case, one pair per row
  rows: int  # B, packed rows per micro-batch, over all hosts
  row_length: int  # S
  slots: int  # maximum pairs per row
  pairs: int  # pairs per step


class Batch(NamedTuple):
  """One step's packed rows.

  The `target_*` fields list a row's targets from the front, with room for S; they are not aligned
  with `tokens`.
  """

  tokens: Int32[AnyArray, "micro B S"]
  positions: Int32[AnyArray, "micro B S"]  # rotary
  k_start: Int32[AnyArray, "micro B S"]  # first key that the token sees
  k_end: Int32[AnyArray, "micro B S"]  # one past the last key
  target_index: Int32[AnyArray, "micro B S"]  # position whose output predicts the target
  target_id: Int32[AnyArray, "micro B S"]  # the response token, -1 for none
  target_seq: Int32[AnyArray, "micro B S"]  # 2 * slot + (0 chosen | 1 rejected), 2 * slots: none
  pair: Int32[AnyArray, "micro B slots"]  # the pair's number in the step, `pairs` for none
  num_micro: Int32[AnyArray, ""]  # micro-batches in use; the others are never computed


class MicroBatch(NamedTuple):
  """One micro-batch of a `Batch` inside the program, or one device's rows of one."""

  tokens: Int32[Array, "B S"]
  positions: Int32[Array, "B S"]
  k_start: Int32[Array, "B S"]
  k_end: Int32[Array, "B S"]
  target_index: Int32[Array, "B S"]
  target_id: Int32[Array, "B S"]
  target_seq: Int32[Array, "B S"]
  pair: Int32[Array, "B slots"]


def batch_shape(pairs: int, row_length: int, slots: int, rows: int) -> BatchShape:
  """Returns sizes that hold a step's pairs even if no two pairs can share a row."""
  return BatchShape(ceil_div(pairs, rows), rows, row_length, slots, pairs)


def empty_batch(shape: BatchShape, local: range | None = None) -> Batch:
  """Returns a batch of padding only: each token sees only itself, and there are no targets.

  Args:
    local: the rows of each micro-batch to include; None for all.
  """
  micro, rows, S, slots, pairs = shape
  size = micro, rows if local is None else len(local), S
  here = np.broadcast_to(np.arange(S, dtype=np.int32), size)
  return Batch(
    tokens=np.zeros(size, np.int32),
    positions=np.zeros(size, np.int32),
    k_start=here.copy(),
    k_end=here + 1,
    target_index=np.zeros(size, np.int32),
    target_id=np.full(size, -1, np.int32),
    target_seq=np.full(size, 2 * slots, np.int32),
    pair=np.full((*size[:2], slots), pairs, np.int32),
    num_micro=np.zeros((), np.int32),
  )


def row_length(data: DataSettings) -> int:
  """Returns S, the tokens of a packed row; by default, enough for any pair."""
  return data.row_length or 2 * data.max_length
