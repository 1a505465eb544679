"""Prepares preference pairs once: a TFDS dataset of ArrayRecord shards, written in parallel.

Each part of the source (`file_chunks.cut`) becomes one shard of each split, so what is written
does not depend on the number of workers. Everything goes to a folder of its own, which is
renamed when it is complete: readers, and whoever comes after a kill, see all or nothing.
For a bucket that folder is a local one; what is uploaded last makes a dataset of it.
"""

import concurrent.futures
import contextlib
import fcntl
import functools
import io
import json
import multiprocessing
import os
import pathlib
import tempfile
import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from etils import epath
from tensorflow_datasets.core import (
  dataset_builder,
  dataset_info,
  file_adapters,
  naming,
  splits,
)
from tensorflow_datasets.core.utils import version as tfds_version

from simpo_jax import storage
from simpo_jax.data.file_chunks import Chunk, File, cut, stamp
from simpo_jax.data.prepared.records import DESCRIPTION, FORMAT, HELD_OUT, RECORD, TRAIN, features
from simpo_jax.data.prepared.shards import Written, write_chunk
from simpo_jax.data.skip_report import SkipReport, add_reports, check_limit, commonest, no_rows
from simpo_jax.errors import UserError, one_line
from simpo_jax.storage import temporary
from simpo_jax.storage.bucket_lock import Held, Lease

_LAST = "dataset_info.json"  # without it a folder is no dataset


class Target(NamedTuple):
  """Where a dataset is prepared, and from what."""

  out: storage.Path  # TFDS's data_dir
  name: str
  version: str
  source: dict[str, Any]  # what, when the same, gives the same dataset

  @property
  def folder(self) -> storage.Path:
    return self.out / self.name / self.version

  @property
  def there(self) -> bool:
    """Whether it is there already."""
    return (self.folder / (_LAST if storage.is_remote(self.out) else "")).exists()


class PreferencePairs(dataset_builder.FileReaderBuilder, skip_registration=True):
  """The TFDS builder. `tfds.builder(name, data_dir=out)` reads what it has written."""

  url_infos = {}  # nothing is downloaded; TFDS would look for their checksums beside this file

  def __init__(self, target: Target, out: pathlib.Path, write: Callable[[pathlib.Path], Any]):
    vars(self).update(name=target.name, VERSION=tfds_version.Version(target.version))
    self._write = write
    super().__init__(data_dir=str(out), file_format=file_adapters.FileFormat.ARRAY_RECORD)

  def _info(self):
    return dataset_info.DatasetInfo(
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
) -> tuple[dict[str, Any], bool]:
  """Writes the dataset unless it is there already.

  Args:
    files: of rows, in the order that the pairs will have.
    eval_fraction: of the pairs go to the split "test", chosen by their ids.
    max_skip_fraction: more rows than this that cannot be used are an error.
    workers: processes; 1: this one.
    force: replace what another source has left there.
    progress: told (bytes done, bytes of all, pairs written) as it goes.

  Returns:
    (what prepared.json holds, whether it was written now).

  Raises:
    UserError: a file cannot be read, too many rows cannot be used, another dataset or
      another preparation is in the way.
  """
  source = {**target.source, "files": stamp(files), "eval_fraction": eval_fraction}
  with exclusive(target):
    if target.there and not force:
      return _same(target, source), False
    chunks = cut(files, chunk_bytes) if chunk_bytes else cut(files)
    record: dict[str, Any] = {}

    def write(folder: pathlib.Path):
      written = _write_all(chunks, folder, eval_fraction, workers, progress)
      report = functools.reduce(add_reports, (part.report for part in written), no_rows())
      record.update(_summary(source, written, report))
      _check(report, bool(record["pairs"].get(TRAIN)), max_skip_fraction)
      return record["shards"]

    here = target.out if isinstance(target.out, pathlib.Path) else None
    try:
      with temporary.folder_for(here / target.name) if here else _private_folder() as scratch:
        builder = PreferencePairs(target, scratch, write)
        with contextlib.redirect_stdout(io.StringIO()):  # notices of a download of unknown size
          builder.download_and_prepare()
        done = scratch / target.name / target.version
        (done / RECORD).write_text(json.dumps(record, indent=2) + "\n")
        _into_place(done, target, scratch)
    except (OSError, RuntimeError) as error:  # array_record raises the latter
      if "no space left" not in str(error).lower():
        raise
      raise UserError(
        f"no space is left in {here or tempfile.gettempdir()}, nothing was written; free some, or "
        f"choose another {'--out' if here else 'TMPDIR'}"
      ) from error
  return record, True


@contextlib.contextmanager
def _private_folder():
  with tempfile.TemporaryDirectory() as name:
    yield pathlib.Path(name)


def _into_place(done: pathlib.Path, target: Target, scratch: pathlib.Path) -> None:
  if storage.is_remote(target.out):
    try:
      storage.remove_tree(target.folder)
      storage.upload(done, target.folder, last=_LAST)
    except storage.failures() as error:
      raise UserError(
        f"--out={target.out} cannot be written ({one_line(error)}); start the same command again"
      ) from error
    return
  target.folder.parent.mkdir(exist_ok=True)
  if target.folder.exists():
    os.rename(target.folder, scratch / "replaced")
  os.rename(done, target.folder)


@contextlib.contextmanager
def exclusive(target: Target):
  """Keeps other preparations of the name out."""
  if storage.is_remote(target.out):
    try:
      lease = Lease(target.out / f".{target.name}.lock")
    except Held:
      raise UserError(_being_prepared(target)) from None
    except storage.failures() as error:
      raise UserError(
        f"--out={target.out} cannot be written ({one_line(error)}); choose another folder"
      ) from error
    with contextlib.closing(lease):
      yield
    return
  try:
    target.out.mkdir(parents=True, exist_ok=True)
    lock = target.out / f".{target.name}.lock"
    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
  except OSError as error:
    raise UserError(
      f"--out={target.out} cannot be written ({error.strerror}); choose another folder"
    ) from error
  try:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      raise UserError(_being_prepared(target)) from None
    yield
  finally:
    os.close(handle)


def _being_prepared(target: Target) -> str:
  return f"{target.name} is being prepared in {target.out} right now; wait for it to end"


def _same(target: Target, source: dict[str, Any]) -> dict[str, Any]:
  """The record of what is there, if it came from the same source."""
  try:
    record = json.loads((target.folder / RECORD).read_text())
  except (*storage.failures(), ValueError):
    record = {}
  if record.get("source") != json.loads(json.dumps(source)):
    raise UserError(
      f"{target.folder} holds a dataset of another source; choose another --name or --version, "
      "or replace it with --force"
    )
  return record


def _write_all(
  chunks: Sequence[Chunk],
  folder: pathlib.Path,
  eval_fraction: float,
  workers: int,
  progress: Callable[[int, int, int], None],
) -> list[Written]:
  """Writes the shards of every chunk; the results in the order of the chunks."""
  jobs = [(chunk, str(folder / f"part{i}"), eval_fraction) for i, chunk in enumerate(chunks)]
  total, done, pairs = sum(c.size for c in chunks), 0, 0
  results: dict[int, Written] = {}
  with contextlib.ExitStack() as stack:
    if min(workers, len(jobs)) > 1:
      pool = concurrent.futures.ProcessPoolExecutor(
        min(workers, len(jobs)), multiprocessing.get_context("spawn"), _end_with_parent
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


def _end_with_parent() -> None:
  # A worker whose parent was killed would wait for work for ever.
  if parent := multiprocessing.parent_process():
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


def _summary(
  source: dict[str, Any], written: Sequence[Written], report: SkipReport
) -> dict[str, Any]:
  shards: dict[str, list[dict[str, Any]]] = {}
  for part in written:
    for split, shard in part.shards.items():
      shards.setdefault(split, []).append(shard)
  order = [s for s in (TRAIN, HELD_OUT) if s in shards]
  return {
    "format": FORMAT,
    "source": source,
    "rows": report.total,
    "pairs": {split: sum(s["pairs"] for s in shards[split]) for split in order},
    "skipped": dict(commonest(report)),
    "examples": report.examples,
    "shards": {split: shards[split] for split in order},
  }


def _check(report: SkipReport, trains: bool, limit: float) -> None:
  if not report.total:
    raise UserError("the source has no rows; give files with at least one preference pair")
  check_limit(report, limit, "--max_skip_fraction", outcome=", nothing was written")
  if not trains:
    raise UserError("no pair is left to train on; lower --eval_fraction")
