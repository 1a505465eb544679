"""A part of a source as shards, one of each split: what a worker of `builder` does."""

import contextlib
import hashlib
import os
from typing import Any, NamedTuple

from simpo_jax.data.file_chunks import Chunk, read_chunk
from simpo_jax.data.prepared.records import HELD_OUT, TRAIN, serializer, to_record
from simpo_jax.data.row_files import Malformed
from simpo_jax.data.row_formats import SkipRow, check_texts, to_conversation
from simpo_jax.data.skip_report import SkipReport, add_row, no_rows
from simpo_jax.storage.digests import sha256


class Written(NamedTuple):
  """What became of a chunk. `shards`: by split, {file, pairs, bytes, sha256} if it has pairs."""

  shards: dict[str, dict[str, Any]]
  report: SkipReport


def write_chunk(chunk: Chunk, prefix: str, eval_fraction: float) -> Written:
  """Writes the usable pairs of a chunk to PREFIX.train and PREFIX.test."""
  report = no_rows()
  serialize = serializer()
  with contextlib.ExitStack() as stack:
    writers = {}
    for row_id, row in read_chunk(chunk):
      try:
        if isinstance(row, Malformed):
          raise SkipRow(row.reason)
        pair = to_conversation(row)
        check_texts(pair)
        if pair.chosen == pair.rejected:
          raise SkipRow("identical")
      except SkipRow as skip:
        report = add_row(report, row_id, skip.reason)
        continue
      report = add_row(report, row_id)
      split = HELD_OUT if _share(row_id) < eval_fraction else TRAIN
      if split not in writers:
        writers[split] = stack.enter_context(_writer(f"{prefix}.{split}"))
      writers[split](serialize(to_record(row_id, pair)))
  shards = {split: {"file": os.path.basename(w.path), **w.sums()} for split, w in writers.items()}
  return Written(shards, report)


class _Shard:
  """A shard that is being written. Call it with each serialized record."""

  def __init__(self, path: str):
    from array_record.python.array_record_module import ArrayRecordWriter

    self.path, self._pairs = path, 0
    self._file = ArrayRecordWriter(path, "group_size:1")  # as TFDS does: one record a read

  def __call__(self, record: bytes) -> None:
    self._file.write(record)
    self._pairs += 1

  def close(self) -> None:
    self._file.close()

  def sums(self) -> dict[str, Any]:
    size = os.path.getsize(self.path)
    return {"pairs": self._pairs, "bytes": size, "sha256": sha256(self.path)}


def _writer(path: str):
  return contextlib.closing(_Shard(path))


def _share(row_id: str) -> float:
  """A number in [0, 1) that stands for the row, the same for ever."""
  return int.from_bytes(hashlib.sha256(row_id.encode()).digest()[:6], "big") / 2**48
