"""Loads all usable pairs of files into memory, and finds those that repeat."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from simpo_jax.data.file_chunks import File
from simpo_jax.data.prepared.dataset import is_prepared, open_prepared
from simpo_jax.data.readers import splits
from simpo_jax.data.readers.embedded import embedded_pairs
from simpo_jax.data.row_files import Malformed
from simpo_jax.data.rows.fields import parse_columns
from simpo_jax.data.shuffle import prompt_key
from simpo_jax.data.skip_report import SkipReport, add_row, check_limit
from simpo_jax.data.sources import Source, open_source, read_files
from simpo_jax.data.tokenize_pairs import PAIR_PARTS, read_pairs
from simpo_jax.data.types import PairTokens
from simpo_jax.errors import UserError
from simpo_jax.settings import DataSettings
from simpo_jax.tokenizer.tokenizer import Tokenizer

EMBEDDED = "embedded"
_MAX_FILES = 8  # whose rows are told one by one


class Entry(NamedTuple):
  """An entry of data.train or data.eval, and which of its files are read.

  Attributes:
    name: as the user wrote it.
    source: what it names; None: prepared or embedded pairs.
    kind: the split that is read if there are several, splits.TRAIN or splits.HELD_OUT.
  """

  name: str
  source: Source | None
  kind: str


def open_entry(name: str, kind: str) -> Entry:
  """Lists what an entry of data.train (TRAIN) or data.eval (HELD_OUT) names; raises UserError."""
  listed = not is_prepared(name) and name != EMBEDDED
  return Entry(name, open_source(name) if listed else None, kind)


def load_pairs(
  data: DataSettings,
  tokenizer: Tokenizer,
  paths: Sequence[str | Entry],
  seed: int,
  notes: list[str] | None = None,
) -> tuple[list[PairTokens], SkipReport]:
  """Loads the usable pairs of all entries, in order, with a report on the other rows.

  Args:
    paths: entries; by name: held-out data, or "embedded" for `data.embedded_pairs` synthetic pairs.
      Of a prepared dataset the split "test" is read if none is named.
    seed: seed of the synthetic pairs.
    notes: receives what was read from where, if an entry has several files.

  Raises:
    UserError: a file or setting is wrong, no row is usable, or more than
      `data.max_skip_fraction` of the rows are unusable.
  """
  parts, report = load_each(data, tokenizer, paths, seed, notes)
  return [pair for part in parts for pair in part], report


def load_each(
  data: DataSettings,
  tokenizer: Tokenizer,
  paths: Sequence[str | Entry],
  seed: int,
  notes: list[str] | None = None,
) -> tuple[list[list[PairTokens]], SkipReport]:
  """Like `load_pairs`, with one list of pairs per entry."""
  paths = (paths,) if isinstance(paths, str) else tuple(paths)
  if not paths:
    raise UserError('no preference data; set data.train to files or to ("embedded",)')
  report = SkipReport(0, 0, {}, dict.fromkeys(PAIR_PARTS, 0), {}, {})
  notes, columns = [] if notes is None else notes, parse_columns(data.columns)
  entries = [open_entry(p, splits.HELD_OUT) if isinstance(p, str) else p for p in paths]
  parts: list[list[PairTokens]] = []
  for entry in entries:
    files = entry.source.files(entry.kind) if entry.source else []
    counts: dict[str, list[int]] = {}  # {file: [kept rows, rows]}
    pairs = []
    for row_id, row in _rows(entry, files, data, columns, seed):
      of_file = counts.setdefault(row_id.rpartition(":")[0], [0, 0])
      for result in read_pairs(row_id, row, tokenizer, data):
        report = add_row(report, result.id, result.skipped, result.truncated, result.notes)
        of_file[1] += 1
        if result.pair is not None:
          of_file[0] += 1
          pairs.append(result.pair)
    parts.append(pairs)
    if entry.source:
      notes += _describe(entry, entry.source, files, counts, len(entries) > 1)
  names = ", ".join(entry.name for entry in entries)
  check_limit(report, data.max_skip_fraction, "data.max_skip_fraction", f"rows of {names}")
  return parts, report


def _rows(
  entry: Entry, files: Sequence[File], data: DataSettings, columns: dict[str, str], seed: int
) -> Iterator[tuple[str, dict[str, Any] | Malformed]]:
  if entry.source:
    return read_files(entry.name, files, columns)
  if is_prepared(entry.name):
    prepared = open_prepared(entry.name, data.dir, splits.HELD_OUT)
    return (prepared.read(i, columns) for i in range(len(prepared)))
  rows = embedded_pairs(data.embedded_pairs, seed)
  return ((f"{EMBEDDED}:{i}", row) for i, row in enumerate(rows, start=1))


def _describe(
  entry: Entry, source: Source, files: Sequence[File], rows: dict[str, list[int]], several: bool
) -> Iterator[str]:
  """Says how many rows each file gave, and which files were left out."""
  name, role = entry.name, "training" if entry.kind == splits.TRAIN else "held-out"
  if len(files) > 1 or several:
    each = [f"{file} {kept} of {total} rows" for file, (kept, total) in rows.items()]
    more = f" and {len(each) - _MAX_FILES} more files" if len(each) > _MAX_FILES else ""
    yield f"{name}: {', '.join(each[:_MAX_FILES])}{more}"
  taken = {file.name for file in files}
  left = [split.label for split in source.splits if not taken & set(split.names)]
  if left:
    took = next(split.label for split in source.splits if taken & set(split.names))
    yield f"{name}: {took} are the {role} pairs, and not {splits.listed(left)}"
  yield from source.left_out()


class Repeats(NamedTuple):
  """Ids of pairs that repeat an earlier one, and of those that say the opposite of one."""

  same: list[str]
  reversed: list[str]


def find_repeats(pairs: Iterable[PairTokens]) -> Repeats:
  """Finds pairs with the same tokens as an earlier pair, also with the responses swapped."""
  seen: set[tuple[bytes, int, int]] = set()
  found = Repeats([], [])
  for pair in pairs:
    prompt = prompt_key(pair)
    chosen, rejected = (hash(np.asarray(r).tobytes()) for r in (pair.chosen, pair.rejected))
    if (prompt, chosen, rejected) in seen:
      found.same.append(pair.id)
    elif (prompt, rejected, chosen) in seen:
      found.reversed.append(pair.id)
    seen.add((prompt, chosen, rejected))
  return found
