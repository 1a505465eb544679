"""Steps take every pair once an epoch, as many each, in full rows."""

import numpy as np
import pytest

from simpo_jax.data.mixture import pair_indices
from simpo_jax.data.packing import assign_rows
from simpo_jax.data.steps import balance_steps, window_source
from simpo_jax.data.steps import step_source as pairs_source
from simpo_jax.data.types import PairTokens

# Pairs like those of the real data: mean 915 tokens, standard deviation 480, at most 1,917.
LENGTHS = (
  np.clip(np.random.default_rng(0).gamma(3.6, 254, size=5000), 40, 1917).astype(int).tolist()
)


def step_source(lengths, batch_size, row_length, slots, lookahead, seed):
  """The function from a step to the places of its pairs, which are so long."""
  none = np.zeros(0, np.int32)
  pairs = [PairTokens(str(i), np.zeros(n, np.int32), none, none) for i, n in enumerate(lengths)]

  def read(start, n):
    return [pairs[i] for i in pair_indices(len(pairs), seed, start, n)], None

  window = window_source(read, batch_size, row_length, slots, lookahead, seed)
  source = pairs_source(window, lookahead)
  return lambda step: [int(pair.id) for pair in source(step)[0]]


def fill(steps, lengths, row_length, slots=16):
  """Tokens of pairs in those of the rows that hold them, step by step."""
  rows = sum(len(assign_rows([lengths[i] for i in step], row_length, slots)) for step in steps)
  return sum(lengths[i] for step in steps for i in step) / (rows * row_length)


@pytest.mark.parametrize("batch_size", (8, 16, 32, 128))
def test_rows_are_over_95_percent_full(batch_size):
  sources = {
    lookahead: step_source(LENGTHS, batch_size, 2048, 16, lookahead, seed=0)
    for lookahead in (0, 32)
  }
  full = {
    lookahead: fill([source(s) for s in range(1, 65)], LENGTHS, 2048)
    for lookahead, source in sources.items()
  }
  print(f"{batch_size} pairs a step: {full}")
  assert full[32] > 0.95
  assert full[32] >= full[0]


@pytest.mark.parametrize("lookahead", (0, 1, 3, 32))
def test_every_pair_once_an_epoch(lookahead):
  pairs, size = 96, 4
  source = step_source(LENGTHS[:pairs], size, 2048, 16, lookahead, seed=3)
  steps = [source(s) for s in range(1, 2 * 24 + 1)]
  assert {len(step) for step in steps} == {size}
  if 24 % max(1, lookahead) == 0:  # windows end with the epoch
    for epoch in (steps[:24], steps[24:]):
      assert sorted(i for step in epoch for i in step) == list(range(pairs))
  assert steps[:24] != steps[24:]
  seen = np.bincount([i for step in steps for i in step], minlength=pairs)
  assert lookahead == 32 or set(seen) == {2}


def test_any_step_can_be_asked_for_at_any_time():
  make = lambda seed: step_source(LENGTHS[:50], 7, 2048, 4, 5, seed)  # noqa: E731
  forward, backward = make(0), make(0)
  there = [forward(s) for s in range(1, 40)]
  assert there == [backward(s) for s in range(39, 0, -1)][::-1]
  assert there != [make(1)(s) for s in range(1, 40)]


@pytest.mark.parametrize("seed", range(30))
def test_dealing_loses_nothing(seed):
  """Whatever the lengths: also where no rows add up, and some must be taken apart."""
  rng = np.random.default_rng(seed)
  steps, size = int(rng.integers(1, 9)), int(rng.integers(1, 20))
  longest = int(rng.choice([3, 10, 100]))
  lengths = rng.integers(1, longest + 1, size=steps * size).tolist()
  slots = int(rng.choice([1, 2, 16]))
  dealt = balance_steps(lengths, steps, 100, slots, (seed,))
  assert [len(step) for step in dealt] == [size] * steps
  assert sorted(i for step in dealt for i in step) == list(range(steps * size))


def test_a_window_larger_than_the_data():
  source = step_source(LENGTHS[:10], 8, 2048, 16, 32, seed=0)
  steps = [source(s) for s in range(1, 33)]
  assert {len(s) for s in steps} == {8}
  counts = np.bincount([i for step in steps for i in step], minlength=10)
  assert counts.max() - counts.min() <= 1
