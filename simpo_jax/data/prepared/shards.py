"""Writes a chunk of a source as one shard per split; runs in the workers of `builder`."""

import contextlib
import os
from collections.abc import Mapping
from typing import Any, NamedTuple

from simpo_jax.data.file_chunks import Chunk, read_chunk
from simpo_jax.data.prepared.records import serializer, to_record
from simpo_jax.data.readers.splits import HELD_OUT, TRAIN
from simpo_jax.data.row_files import Malformed
from simpo_jax.data.rows.formats import check_texts, to_conversation
from simpo_jax.data.rows.read import split_answers
from simpo_jax.data.rows.reasons import SkipRow
from simpo_jax.data.shuffle import prompt_fraction
from simpo_jax.data.skip_report import SkipReport, add_row, empty_report
from simpo_jax.data.tokenize_pairs import skipped_id
from simpo_jax.storage.digests import sha256


class WrittenChunk(NamedTuple):
  """The result of a chunk.

  Attributes:
    shards: {split: {file, pairs, bytes, sha256}}, for nonempty splits.
    names: of the columns, if any is mapped; see `fields.check_columns`.
  """

  shards: dict[str, dict[str, Any]]
  report: SkipReport
  names: dict[str, None]


def write_chunk(
  chunk: Chunk, prefix: str, eval_fraction: float, columns: Mapping[str, str]
) -> WrittenChunk:
  """Writes the usable pairs of a chunk to PREFIX.train and PREFIX.test.

  Args:
    columns: {field: column}; see `fields.parse_columns`.
  """
  report, names = empty_report(), {}
  serialize = serializer()
  with contextlib.ExitStack() as stack:
    writers = {}
    rows = (part for row in read_chunk(chunk, columns, names) for part in split_answers(*row))
    for row_id, row in rows:
      try:
        if isinstance(row, Malformed):
          raise SkipRow(row.reason)
        pair = to_conversation(row)
        check_texts(pair)
        if pair.chosen == pair.rejected:
          raise SkipRow("identical")
      except SkipRow as skip:
        report = add_row(report, skipped_id(row_id, skip), skip.reason)
        continue
      report = add_row(report, row_id, notes=pair.notes)
      split = HELD_OUT if prompt_fraction(pair.prompt) < eval_fraction else TRAIN
      if split not in writers:
        writers[split] = stack.enter_context(_shard_writer(f"{prefix}.{split}"))
      writers[split](serialize(to_record(row_id, pair)))
  shards = {
    split: {"file": os.path.basename(w.path), **w.summary()} for split, w in writers.items()
  }
  return WrittenChunk(shards, report, names)


class _Shard:
  """A shard that is being written; called with each serialized record."""

  def __init__(self, path: str):
    from array_record.python.array_record_module import ArrayRecordWriter

    self.path, self._pairs = path, 0
    self._file = ArrayRecordWriter(path, "group_size:1")  # as in TFDS: a read decodes one record

  def __call__(self, record: bytes) -> None:
    self._file.write(record)
    self._pairs += 1

  def close(self) -> None:
    self._file.close()

  def summary(self) -> dict[str, Any]:
    size = os.path.getsize(self.path)
    return {"pairs": self._pairs, "bytes": size, "sha256": sha256(self.path)}


def _shard_writer(path: str):
  return contextlib.closing(_Shard(path))
