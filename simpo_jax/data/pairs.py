"""Loads all usable pairs of files into memory."""

from collections.abc import Sequence

from simpo_jax.data.embedded import embedded_pairs
from simpo_jax.data.prepared.dataset import is_prepared, open_prepared
from simpo_jax.data.prepared.records import HELD_OUT
from simpo_jax.data.row_files import read_rows
from simpo_jax.data.skip_report import SkipReport, add_row, check_limit
from simpo_jax.data.tokenize_pairs import PAIR_PARTS, read_pairs
from simpo_jax.data.types import PairTokens
from simpo_jax.errors import UserError
from simpo_jax.settings import DataSettings
from simpo_jax.tokenizer.tokenizer import Tokenizer


def load_pairs(
  data: DataSettings, tokenizer: Tokenizer, paths: Sequence[str], seed: int
) -> tuple[list[PairTokens], SkipReport]:
  """Loads the usable pairs of all files, in order, with a report on the other rows.

  Args:
    paths: files, prepared datasets (the split "test" if none is named), or "embedded" for
      `data.embedded_pairs` synthetic pairs.
    seed: seed of the synthetic pairs.

  Raises:
    UserError: a file or setting is wrong, no row is usable, or more than
      `data.max_skip_fraction` of the rows are unusable.
  """
  paths = (paths,) if isinstance(paths, str) else tuple(paths)
  if not paths:
    raise UserError('no preference data; set data.train to files or to ("embedded",)')
  pairs, report = [], SkipReport(0, 0, {}, dict.fromkeys(PAIR_PARTS, 0), {}, {})
  for path in paths:
    rows = _rows(path, data, seed)
    for result in (pair for row in rows for pair in read_pairs(*row, tokenizer, data)):
      report = add_row(report, result.id, result.skipped, result.truncated, result.notes)
      if result.pair is not None:
        pairs.append(result.pair)
  check_limit(
    report, data.max_skip_fraction, "data.max_skip_fraction", f"rows of {', '.join(paths)}"
  )
  return pairs, report


def _rows(path: str, data: DataSettings, seed: int):
  if is_prepared(path):
    prepared = open_prepared(path, data.dir, HELD_OUT)
    return (prepared.read(i) for i in range(len(prepared)))
  if path != "embedded":
    return read_rows(path)
  rows = embedded_pairs(data.embedded_pairs, seed)
  return ((f"embedded:{i}", row) for i, row in enumerate(rows, start=1))
