"""The infinite, randomly accessible stream of training pairs of a run.

The pair at a position is a pure function of the data and the seed, so that it is the same on every
host, for any number of workers, and after a resume at any step. Pairs in memory are visited epoch
by epoch. Prepared datasets are read through Grain, whose shuffling and mixing are functions of the
index and need no permutation table.

A row of a prepared dataset may turn out to be unusable with the run's tokenizer. It is counted, and
replaced by the row at a far position of the same stream.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from simpo_jax.data.prepared.dataset import Prepared
from simpo_jax.data.rows.fields import parse_columns
from simpo_jax.data.shuffle import pair_indices_for_step
from simpo_jax.data.skip_report import SkipReport, add_row, describe_reasons, empty_report
from simpo_jax.data.tokenize_pairs import RowResult, read_row
from simpo_jax.data.types import PairTokens
from simpo_jax.errors import UserError
from simpo_jax.settings import DataSettings
from simpo_jax.tokenizer.tokenizer import Tokenizer

# (first position, count) -> (usable pairs, report on the rows read; None for pairs in memory).
ReadPairs = Callable[[int, int], tuple[list[PairTokens], SkipReport | None]]

# Distance from an unusable row to its substitute, a prime: in a dataset of 2**n rows, a distance of
# 2**40 would lead to the same row of an identically shuffled epoch.
_SUBSTITUTE_OFFSET = 2**40 + 15
_MAX_TRIES = 100
_MIN_ROWS_FOR_THREADS = 16


class Mixture(NamedTuple):
  """Training data of several sources, of which prepared datasets are read lazily.

  weights: mixture weights, one per source; (): proportional to the sizes of the sources.
  """

  sources: tuple[list[PairTokens] | Prepared, ...]
  weights: tuple[float, ...]

  def __len__(self):
    return sum(len(source) for source in self.sources)

  @property
  def identity(self) -> str | tuple:
    """Identifies the data without reading it; compared on resume."""
    parts = [s.identity if isinstance(s, Prepared) else s for s in self.sources]
    return (json.dumps(self.weights), parts)


def open_stream(
  pairs: Sequence[PairTokens] | Mixture,
  tokenizer: Tokenizer,
  data: DataSettings,
  batch_size: int,
  seed: int,
) -> ReadPairs:
  """Returns the function that reads the stream of training pairs.

  Raises:
    UserError: there are fewer pairs than a batch holds. The returned function raises it for a
      corrupt shard, or if it finds no usable row in 100 tries.
  """
  if len(pairs) < batch_size:
    raise UserError(
      f"{len(pairs)} pairs do not fill a batch of {batch_size}; lower train.batch_size or add data"
    )
  if not isinstance(pairs, Mixture):
    return lambda start, n: ([pairs[i] for i in pair_indices(len(pairs), seed, start, n)], None)
  dataset = _grain_dataset(pairs, tokenizer, data, seed)

  def read(start: int, n: int) -> tuple[list[PairTokens], SkipReport]:
    found, report = [], empty_report()
    for position, item in enumerate(_read_items(dataset, start, n, data.workers), start=start):
      report = add_row(report, item.id, item.skipped, item.truncated, item.notes)
      for _ in range(_MAX_TRIES):
        if item.pair is not None:
          break
        position += _SUBSTITUTE_OFFSET
        item = dataset[position]
        report = add_row(report, item.id, item.skipped, item.truncated, item.notes)
      else:
        reasons = describe_reasons(report)
        raise UserError(f"no usable pair in {_MAX_TRIES} rows: {reasons}; fix the data")
      found.append(item.pair)
    return found, report

  return read


def pair_indices(n: int, seed: int, start: int, count: int) -> list[int]:
  """Returns the indices of `count` pairs from stream position `start` (from 0); n pairs in all."""
  return pair_indices_for_step(n, 1, seed, start + 1, count).tolist()


def _grain_dataset(mixture: Mixture, tokenizer: Tokenizer, data: DataSettings, seed: int) -> Any:
  """An infinite Grain MapDataset of `RowResult`."""
  import grain

  columns = parse_columns(data.columns)

  def parts() -> Iterator[Any]:
    for source in mixture.sources:
      items: Any = source if isinstance(source, list) else _PreparedSource(source, columns)
      yield grain.MapDataset.source(items)

  def shuffled(dataset: Any, number: int) -> Any:
    # Grain's seed of an epoch is this one plus the epoch, so that runs with adjacent seeds would be
    # one epoch apart if the seed were not hashed.
    hashed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
    return dataset.shuffle(seed=hashed).repeat(None)

  def read(item: PairTokens | tuple[str, dict[str, Any]]) -> RowResult:
    if isinstance(item, PairTokens):
      return RowResult(item.id, item, None, ())
    row_id, row = item
    return read_row(row_id, row, tokenizer, data)

  if mixture.weights:
    each = [shuffled(part, number) for number, part in enumerate(parts())]
    mixed = grain.MapDataset.mix(each, mixture.weights)
  else:
    mixed = shuffled(grain.MapDataset.concatenate(list(parts())), 0)
  return mixed.map(read)


class _PreparedSource:
  """A prepared dataset as a Grain RandomAccessDataSource."""

  def __init__(self, prepared: Prepared, columns: Mapping[str, str]):
    self._prepared, self._columns = prepared, columns

  def __len__(self):
    return len(self._prepared)

  def __getitem__(self, index: int) -> tuple[str, dict[str, Any]]:
    return self._prepared.read(int(index), self._columns)


def _read_items(dataset: Any, start: int, n: int, workers: int) -> Iterator[RowResult]:
  if not workers or n < _MIN_ROWS_FOR_THREADS:
    return (dataset[i] for i in range(start, start + n))
  import grain

  options = grain.ReadOptions(num_threads=workers, prefetch_buffer_size=min(n, 16 * workers))
  return iter(dataset[start : min(start + n, sys.maxsize)].to_iter_dataset(options))
