"""Packed rows against the tree mask that they stand for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpo_jax.data.packing import assign_rows, lay_out, pack, pair_length, row_members
from simpo_jax.data.types import PairTokens
from simpo_jax.train.batch import batch_shape, empty_batch


def _pairs(sizes, seed=0):
  rng = np.random.default_rng(seed)
  return [
    PairTokens(str(i), *(rng.integers(1, 1000, n).astype(np.int32) for n in size))
    for i, size in enumerate(sizes)
  ]


def _locate(batch, shape, number):
  """(micro, row, slot) of a pair."""
  [[m, r, g]] = np.argwhere(batch.pair == number)
  return m, r, g


SIZES = [(5, 3, 4), (1, 1, 1), (7, 2, 9), (3, 8, 1), (4, 4, 4), (12, 6, 6)]


@pytest.mark.parametrize("row_length,slots,rows", ((24, 4, 1), (40, 2, 2), (64, 8, 3)))
def test_each_token_sees_its_prompt_and_its_own_response_so_far(row_length, slots, rows):
  pairs = _pairs(SIZES)
  shape = batch_shape(len(pairs), row_length, slots, rows)
  batch = pack(pairs, shape)
  total = 0
  for number, pair in enumerate(pairs):
    m, r, slot = _locate(batch, shape, number)
    tokens, index = batch.tokens[m, r], batch.target_index[m, r]
    for side, response in ((0, pair.chosen), (1, pair.rejected)):
      mine = batch.target_seq[m, r] == 2 * slot + side
      assert batch.target_id[m, r][mine].tolist() == response.tolist()
      sequence = np.concatenate([pair.prompt, response])
      for i, predictor in enumerate(index[mine]):
        position = len(pair.prompt) + i - 1
        seen = slice(batch.k_start[m, r, predictor], batch.k_end[m, r, predictor])
        positions = batch.positions[m, r, seen]
        order = np.argsort(positions)
        # It sees exactly the sequence before the target, each position once.
        assert positions[order].tolist() == list(range(position + 1))
        assert tokens[seen][order].tolist() == sequence[: position + 1].tolist()
        assert batch.positions[m, r, predictor] == position
      total += len(response)
  assert (batch.target_id >= 0).sum() == total
  used = (batch.k_end - batch.k_start > 1).sum()
  assert used <= sum(map(pair_length, pairs))
  assert int(batch.num_micro) == -(-len(row_members(pairs, shape)) // rows)


def test_prompt_tokens_are_causal():
  [pair] = _pairs([(6, 2, 3)])
  batch = pack([pair], batch_shape(1, 16, 1, 1))
  for i in range(6):
    at = 2 + i
    assert batch.tokens[0, 0, at] == pair.prompt[i]
    assert (batch.k_start[0, 0, at], batch.k_end[0, 0, at]) == (2, at + 1)


def test_padding_sees_itself_alone_and_targets_nothing():
  shape = batch_shape(2, 16, 2, 1)
  batch = empty_batch(shape)
  assert (batch.k_end - batch.k_start == 1).all()
  assert (batch.target_id == -1).all() and (batch.pair == 2).all()
  assert int(batch.num_micro) == 0


def test_each_host_lays_out_its_own_rows():
  pairs, shape = _pairs(SIZES), batch_shape(len(SIZES), 64, 2, 4)
  whole, members = pack(pairs, shape), row_members(pairs, shape)
  hosts = [lay_out(pairs, members, shape, range(start, start + 2)) for start in (0, 2)]
  for name, array in whole._asdict().items():
    parts = [getattr(host, name) for host in hosts]
    if array.ndim:
      np.testing.assert_array_equal(np.concatenate(parts, axis=1), array)
    else:
      assert array == parts[0] == parts[1]


def test_targets_come_first():
  batch = pack(_pairs(SIZES), batch_shape(6, 64, 8, 1))
  for ids in batch.target_id.reshape(-1, 64):
    n = (ids >= 0).sum()
    assert (ids[:n] >= 0).all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=1, max_size=30), st.integers(1, 5))
def test_rows_never_overflow_and_hold_every_pair_once(lengths, slots):
  rows = assign_rows(lengths, 50, slots)
  assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
  assert all(sum(lengths[i] for i in row) <= 50 and len(row) <= slots for row in rows)
  assert rows == assign_rows(lengths, 50, slots)


def test_a_step_fits_even_if_no_two_pairs_share_a_row():
  pairs = _pairs([(10, 10, 10)] * 5)
  shape = batch_shape(5, 32, 4, 2)
  batch = pack(pairs, shape)
  assert len(row_members(pairs, shape)) == 5 and int(batch.num_micro) == 3


def test_what_cannot_fit_is_refused():
  with pytest.raises(ValueError, match="33 tokens for rows of 32"):
    pack(_pairs([(11, 11, 11)]), batch_shape(1, 32, 1, 1))
  with pytest.raises(ValueError, match="3 pairs for a batch of 2"):
    pack(_pairs([(1, 1, 1)] * 3), batch_shape(2, 32, 1, 1))
