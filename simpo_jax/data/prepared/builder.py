"""Writes preference pairs as a TFDS dataset of ArrayRecord shards, in parallel.

Each chunk of the source (`file_chunks.split_into_chunks`) becomes one shard per split, so that the
result does not depend on the number of workers. A dataset is written atomically: to a temporary
folder that is renamed when it is complete. For a bucket, it is written locally and then uploaded;
the file that is uploaded last makes it valid.
"""

import concurrent.futures
import contextlib
import functools
import io
import json
import multiprocessing
import os
import pathlib
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath
from tensorflow_datasets.core import dataset_builder, dataset_info, file_adapters, naming, splits
from tensorflow_datasets.core.utils import version as tfds_version

from simpo_jax import storage
from simpo_jax.data.file_chunks import Chunk, File, split_into_chunks
from simpo_jax.data.prepared.records import DESCRIPTION, FORMAT, RECORD, features
from simpo_jax.data.prepared.shards import WrittenChunk, write_chunk
from simpo_jax.data.prepared.stamps import CHANGED, UNKNOWN, compare, file_stamps
from simpo_jax.data.prepared.target import COMMIT_FILE, Target, exclusive
from simpo_jax.data.readers.splits import HELD_OUT, TRAIN
from simpo_jax.data.row_files import no_rows
from simpo_jax.data.rows.fields import NO_COLUMNS
from simpo_jax.data.skip_report import (
  SkipReport,
  add_reports,
  check_limit,
  empty_report,
  reasons_by_count,
)
from simpo_jax.errors import UserError, one_line
from simpo_jax.storage import temporary


class _LocalInfo(dataset_info.DatasetInfo):
  """TFDS would look for this dataset among its own on the web, and leave a temporary folder."""

  def initialize_from_bucket(self) -> None:
    """Does nothing."""


class PreferencePairs(dataset_builder.FileReaderBuilder, skip_registration=True):
  """The TFDS builder; `tfds.builder(name, data_dir=out)` reads the dataset."""

  url_infos = {}  # nothing is downloaded; TFDS would look for a checksums file next to this module

  def __init__(self, target: Target, out: pathlib.Path, write: Callable[[pathlib.Path], Any]):
    vars(self).update(name=target.name, VERSION=tfds_version.Version(target.version))
    self._write = write
    super().__init__(data_dir=str(out), file_format=file_adapters.FileFormat.ARRAY_RECORD)

  def _info(self):
    return _LocalInfo(
      builder=self, description=DESCRIPTION, features=features(), disable_shuffling=True
    )

  def _download_and_prepare(self, dl_manager: Any, download_config: Any = None) -> None:
    del dl_manager, download_config
    folder = pathlib.Path(self.data_dir)
    infos = []
    for split, shards in self._write(folder).items():
      template = naming.ShardedFileTemplate(
        data_dir=epath.Path(folder),
        dataset_name=self.name,
        split=split,
        filetype_suffix=file_adapters.FileFormat.ARRAY_RECORD.file_suffix,
      )
      for index, shard in enumerate(shards):
        path = template.sharded_filepath(shard_index=index, num_shards=len(shards))
        os.rename(folder / shard["file"], path)
        shard["file"] = pathlib.Path(path).name
      infos.append(
        splits.SplitInfo(
          name=split,
          shard_lengths=[s["pairs"] for s in shards],
          num_bytes=sum(s["bytes"] for s in shards),
          filename_template=template,
        )
      )
    self.info.set_splits(splits.SplitDict(infos))


def build(
  files: Sequence[File],
  target: Target,
  eval_fraction: float,
  max_skip_fraction: float,
  workers: int,
  force: bool = False,
  progress: Callable[[int, int, int], None] = lambda done, total, pairs: None,
  chunk_bytes: int | None = None,
  columns: Mapping[str, str] = NO_COLUMNS,
  check: Callable[[Mapping[File, Mapping[str, None]]], None] = lambda names: None,
) -> tuple[dict[str, Any], bool]:
  """Writes the dataset unless it exists already.

  Args:
    files: files of rows; the pairs keep their order.
    eval_fraction: fraction of pairs for the split "test", selected by hashes of their prompts.
    max_skip_fraction: maximum fraction of unusable rows.
    workers: number of processes; 1: this process.
    columns: {field: column}; see `fields.parse_columns`.
    check: called with the names of the columns of each file, before the dataset is there; its
      exceptions propagate. Without `columns` there are none.
    progress: called with (bytes done, total bytes, pairs written) after each chunk.

  Returns:
    (contents of prepared.json, whether it was written by this call).

  Raises:
    UserError: a file cannot be read, too many rows are unusable, or a dataset of another source
      exists or is being prepared under this name.
  """
  source = {**target.source, "eval_fraction": eval_fraction}
  source |= {"columns": dict(columns)} if columns else {}
  with exclusive(target):
    if target.exists and not force:
      return _existing_record(target, source, files), False
    source["files"] = file_stamps(files)
    chunks = split_into_chunks(files, chunk_bytes) if chunk_bytes else split_into_chunks(files)
    record: dict[str, Any] = {}

    def write(folder: pathlib.Path):
      written = _write_all(chunks, folder, eval_fraction, columns, workers, progress)
      check(_names(files, chunks, written))
      report = functools.reduce(add_reports, (part.report for part in written), empty_report())
      record.update(_summary(source, written, report))
      _check_report(report, bool(record["pairs"].get(TRAIN)), max_skip_fraction)
      return record["shards"]

    with _scratch(target) as scratch:
      builder = PreferencePairs(target, scratch, write)
      with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints that it downloads
        builder.download_and_prepare()
      done = scratch / target.name / target.version
      (done / RECORD).write_text(json.dumps(record, indent=2) + "\n")
      _publish(done, target, scratch)
  return record, True


@contextlib.contextmanager
def _scratch(target: Target) -> Iterator[pathlib.Path]:
  """A folder to write the dataset in, on the same disk as a local target."""
  local_out = target.out if isinstance(target.out, pathlib.Path) else None
  try:
    if local_out:
      with temporary.folder_for(local_out / target.name) as folder:
        yield folder
    else:
      with tempfile.TemporaryDirectory() as name:
        yield pathlib.Path(name)
  except (OSError, RuntimeError) as error:  # array_record raises the latter
    if "no space left" not in str(error).lower():
      raise
    raise UserError(
      f"no space is left in {local_out or tempfile.gettempdir()}, nothing was written; free "
      f"some, or choose another {'--out' if local_out else 'TMPDIR'}"
    ) from error


def _publish(done: pathlib.Path, target: Target, scratch: pathlib.Path) -> None:
  if storage.is_remote(target.out):
    try:
      storage.remove_tree(target.folder)
      storage.upload(done, target.folder, last=COMMIT_FILE)
    except storage.failures() as error:
      raise UserError(
        f"--out={target.out} cannot be written ({one_line(error)}); start the same command again"
      ) from error
    return
  target.folder.parent.mkdir(exist_ok=True)
  if target.folder.exists():
    os.rename(target.folder, scratch / "replaced")
  os.rename(done, target.folder)


def _existing_record(
  target: Target, source: dict[str, Any], files: Sequence[File]
) -> dict[str, Any]:
  """The prepared.json of the existing dataset; raises UserError if its source is another."""
  try:
    record = json.loads((target.folder / RECORD).read_text())
    before = dict(record["source"])
    stamps = before.pop("files")
  except (*storage.failures(), ValueError, LookupError, TypeError):
    record, before, stamps = {}, {}, None
  result = compare(files, stamps) if before == json.loads(json.dumps(source)) else CHANGED
  if result == UNKNOWN:
    raise UserError(
      f"{target.folder} was prepared by an earlier version of simpo_jax, which recorded no digest "
      "of its source, and the source has another modification time now: whether it has changed "
      "cannot be told; replace the dataset with --force, or choose another --name or --version"
    )
  if result == CHANGED:
    raise UserError(
      f"{target.folder} holds a dataset of another source; choose another --name or --version, "
      "or replace it with --force"
    )
  return record


def _write_all(
  chunks: Sequence[Chunk],
  folder: pathlib.Path,
  eval_fraction: float,
  columns: Mapping[str, str],
  workers: int,
  progress: Callable[[int, int, int], None],
) -> list[WrittenChunk]:
  """Writes the shards of all chunks; returns results in the order of the chunks."""
  jobs = [
    (chunk, str(folder / f"part{i}"), eval_fraction, dict(columns))
    for i, chunk in enumerate(chunks)
  ]
  total, done, pairs = sum(c.size for c in chunks), 0, 0
  results: dict[int, WrittenChunk] = {}
  with contextlib.ExitStack() as stack:
    if min(workers, len(jobs)) > 1:
      pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(jobs)), multiprocessing.get_context("spawn"), _exit_with_parent
      )
      stack.callback(pool.shutdown, wait=True, cancel_futures=True)
      futures = {pool.submit(write_chunk, *job): i for i, job in enumerate(jobs)}
      finished = ((futures[f], f.result()) for f in concurrent.futures.as_completed(futures))
    else:
      finished = ((i, write_chunk(*job)) for i, job in enumerate(jobs))
    for index, written in finished:
      results[index] = written
      done += chunks[index].size
      pairs += sum(s["pairs"] for s in written.shards.values())
      progress(done, total, pairs)
  return [results[index] for index in range(len(jobs))]


def _exit_with_parent() -> None:
  # A worker whose parent was killed would wait for work forever.
  if parent := multiprocessing.parent_process():
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _names(
  files: Sequence[File], chunks: Sequence[Chunk], written: Sequence[WrittenChunk]
) -> dict[File, dict[str, None]]:
  names: dict[File, dict[str, None]] = {file: {} for file in files}
  for chunk, part in zip(chunks, written, strict=True):
    names[chunk.file].update(part.names)
  return names


def _summary(
  source: dict[str, Any], written: Sequence[WrittenChunk], report: SkipReport
) -> dict[str, Any]:
  shards: dict[str, list[dict[str, Any]]] = {}
  for part in written:
    for split, shard in part.shards.items():
      shards.setdefault(split, []).append(shard)
  order = [s for s in (TRAIN, HELD_OUT) if s in shards]
  return {
    "format": FORMAT,
    "source": source,
    "split_by": "prompt",  # absent: by row, of earlier versions
    "rows": report.total,
    "pairs": {split: sum(s["pairs"] for s in shards[split]) for split in order},
    "skipped": dict(reasons_by_count(report)),
    "examples": report.examples,
    "notes": report.notes,
    "shards": {split: shards[split] for split in order},
  }


def _check_report(report: SkipReport, trains: bool, limit: float) -> None:
  if not report.total:
    raise no_rows("the source")
  check_limit(report, limit, "--max_skip_fraction", outcome=", nothing was written")
  if not trains:
    raise UserError("no pair is left to train on; lower --eval_fraction")
