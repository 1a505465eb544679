"""The endless sequence of training pairs that the steps of a run take, position by position.

What lies at a position is a pure function of the seed: every host, every number of
workers, and a run that starts again at any step see the same. Pairs held in memory are
walked through epoch by epoch. Prepared datasets are read through Grain: its index shuffle
needs no table of a dataset's rows, its mixing no more than the weights.

A row that cannot be used (it was prepared without knowing the tokenizer) is counted, and
another one takes its position, drawn from the same stream at a place of its own.
"""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from simpo_jax.data.prepared.dataset import Prepared
from simpo_jax.data.shuffle import pair_indices_for_step
from simpo_jax.data.skip_report import SkipReport, add_row, no_rows, why
from simpo_jax.data.tokenize_pairs import Read, read_row
from simpo_jax.data.types import PairTokens
from simpo_jax.errors import UserError
from simpo_jax.settings import DataSettings
from simpo_jax.tokenizer.tokenizer import Tokenizer

# (first position, how many) -> the pairs there, all usable, and what was met on the way.
ReadPairs = Callable[[int, int], tuple[list[PairTokens], SkipReport | None]]

# Positions from a row that cannot be used to its substitute. A prime: in a dataset of 2**n
# rows, 2**40 leads to the same row of the same order again.
_ASIDE = 2**40 + 15
_TRIES = 100
_WORTH_THREADS = 16  # rows


class Mixture(NamedTuple):
  """Training data of which at least a part is read as it is needed.

  weights: of the sources, in their order; () for as many pairs from each as it has.
  """

  sources: tuple[list[PairTokens] | Prepared, ...]
  weights: tuple[float, ...]

  def __len__(self):
    return sum(len(source) for source in self.sources)

  @property
  def identity(self) -> str | tuple:
    """What tells this data from any other, without reading it."""
    parts = [s.identity if isinstance(s, Prepared) else s for s in self.sources]
    return (json.dumps(self.weights), parts)


def open_stream(
  pairs: Sequence[PairTokens] | Mixture,
  tokenizer: Tokenizer,
  data: DataSettings,
  batch_size: int,
  seed: int,
) -> ReadPairs:
  """The function that reads the stream of these pairs.

  Raises:
    UserError: fewer pairs than a batch holds; later, from the function: a corrupt shard,
      or no usable row among many.
  """
  if len(pairs) < batch_size:
    raise UserError(
      f"{len(pairs)} pairs do not fill a batch of {batch_size}; lower train.batch_size or add data"
    )
  if not isinstance(pairs, Mixture):
    return lambda start, n: ([pairs[i] for i in indices(len(pairs), seed, start, n)], None)
  dataset = _dataset(pairs, tokenizer, data, seed)

  def read(start: int, n: int) -> tuple[list[PairTokens], SkipReport]:
    found, report = [], no_rows()
    for position, item in enumerate(_items(dataset, start, n, data.workers), start=start):
      report = add_row(report, item.id, item.skipped, item.cut)
      for _ in range(_TRIES):
        if item.pair is not None:
          break
        position += _ASIDE
        item = dataset[position]
        report = add_row(report, item.id, item.skipped, item.cut)
      else:
        raise UserError(f"no usable pair in {_TRIES} rows: {why(report)}; fix the data")
      found.append(item.pair)
    return found, report

  return read


def indices(n: int, seed: int, start: int, count: int) -> list[int]:
  """Of the pairs at these positions of the walk through n pairs, epoch by epoch."""
  return pair_indices_for_step(n, 1, seed, start + 1, count).tolist()


def _dataset(mixture: Mixture, tokenizer: Tokenizer, data: DataSettings, seed: int) -> Any:
  """A Grain MapDataset of `Read`, endless."""
  import grain

  def parts() -> Iterator[Any]:
    for source in mixture.sources:
      items: Any = source if isinstance(source, list) else _Rows(source)
      yield grain.MapDataset.source(items)

  def shuffled(dataset: Any, number: int) -> Any:
    # The seed of an epoch is this one plus the epoch: runs of neighbouring seeds must not
    # be one epoch apart.
    own = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return dataset.shuffle(seed=own).repeat(None)

  def read(item: PairTokens | tuple[str, dict[str, Any]]) -> Read:
    if isinstance(item, PairTokens):
      return Read(item.id, item, None, ())
    row_id, row = item
    return read_row(row_id, row, tokenizer, data)

  if mixture.weights:
    each = [shuffled(part, number) for number, part in enumerate(parts())]
    mixed = grain.MapDataset.mix(each, mixture.weights)
  else:
    mixed = shuffled(grain.MapDataset.concatenate(list(parts())), 0)
  return mixed.map(read)


class _Rows:
  """A prepared dataset as Grain wants it."""

  def __init__(self, prepared: Prepared):
    self._prepared = prepared

  def __len__(self):
    return len(self._prepared)

  def __getitem__(self, index: int) -> tuple[str, dict[str, Any]]:
    return self._prepared.read(int(index))


def _items(dataset: Any, start: int, n: int, workers: int) -> Iterator[Read]:
  if not workers or n < _WORTH_THREADS:
    return (dataset[i] for i in range(start, start + n))
  import grain

  options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=min(n, 16 * workers))
  return iter(dataset[start : min(start + n, sys.maxsize)].to_iter_dataset(options))
