"""Opens prepared datasets, "tfds:NAME_OR_DIR[:SPLIT]", for random access.

Integrity: the sizes of shards are checked when a dataset is opened, and their sha256 when it is
downloaded from a bucket. ArrayRecord stores a hash with each record and checks it on every read.
`python -m simpo_jax.prepare --verify` checks the sha256 of all shards.
"""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from simpo_jax import storage
from simpo_jax.data.prepared.find import find_folder, path_as_configured
from simpo_jax.data.prepared.records import RECORD, to_row
from simpo_jax.data.readers import download
from simpo_jax.data.readers.hub import dataset_name, is_hub_source
from simpo_jax.data.readers.splits import TRAIN
from simpo_jax.data.rows.fields import NO_COLUMNS, rename
from simpo_jax.errors import UserError, one_line
from simpo_jax.storage.digests import sha256
from simpo_jax.storage.paths import escapes_folder

PREFIX = "tfds:"
_PART = r"[A-Za-z_]\w*(?:\[[^\]]*\])?"
_SPEC = re.compile(rf"(.+?)(?::({_PART}(?:\+{_PART})*))?")  # a slice may contain a colon
_CLASS_NAMES = ("pythonClassName", "python_class_name", "type")  # keys in features.json
# What is read in addition to shards; label files hold the names of TFDS's ClassLabel features.
_METADATA_FILES = ("dataset_info.json", "features.json", RECORD)
_LABEL_FILES = re.compile(r"[^/]+\.labels\.txt")


class Prepared(NamedTuple):
  """An open dataset. Its memory per record is only array_record's index."""

  spec: str
  folder: str
  source: Any  # a TFDS data source
  identity: str  # identifies split and shards, by their sha256; compared on resume
  is_own: bool = False  # written by `prepare`, so that its fields have their names

  def __len__(self):
    return len(self.source)

  def read(self, index: int, columns: Mapping[str, str] = NO_COLUMNS) -> tuple[str, dict[str, Any]]:
    """Returns (row id, row), like a row of a file; raises UserError if the record is corrupt.

    Args:
      columns: {field: column}, for datasets that `prepare` did not write.
    """
    try:
      row = to_row(self.source[index])
      row = row if self.is_own else rename(row, columns)
    # A hash mismatch, a truncated or missing file, a record of other features: each library
    # raises its own types.
    except Exception as error:
      shard = self._shard(index)
      raise UserError(_corrupt_message(self.folder, shard, one_line(error))) from error
    return str(row.pop("id", "") or f"{self.spec}:{index}"), row

  def _shard(self, index: int) -> str:
    for instruction in getattr(self.source.data_source, "_read_instructions", ()):
      count = instruction.end - instruction.start
      if index < count:
        return os.path.basename(str(instruction.filename))
      index -= count
    return "a shard"


def is_prepared(spec: str) -> bool:
  """Whether an entry of data.train or data.eval names a prepared dataset."""
  return spec.startswith(PREFIX)


def split_spec(spec: str) -> tuple[str, str | None]:
  """Parses "tfds:NAME_OR_DIR[:SPLIT]"; returns (name or folder, split or None)."""
  match = _SPEC.fullmatch(spec.removeprefix(PREFIX))
  return (match[1], match[2]) if match else ("", None)


def open_prepared(spec: str, data_dir: str = "", split: str = TRAIN) -> Prepared:
  """Opens a dataset without reading its records.

  Args:
    spec: "tfds:NAME", "tfds:NAME:1.0.0" or "tfds:FOLDER", optionally with ":SPLIT", such as
      ":test" or ":train[:90%]".
    data_dir: where names are looked up; "": `default_dir()`.
    split: the split if the spec names none.

  Raises:
    UserError: it does not exist, has no such split, or a shard is missing or of the wrong size.
  """
  where, split_in_spec = split_spec(spec)
  split = split_in_spec or split
  folder = find_folder(spec, where, data_dir)
  record = _read_record(folder)
  check_sizes(folder, record)
  _check_types(folder)
  try:
    here = folder if isinstance(folder, pathlib.Path) else _fetch_copy(folder, record)
    builder = _open_builder(here, folder)
    source = builder.as_data_source(split=split)
    name, count = builder.info.full_name, len(source)
  except UserError:
    raise
  # TFDS raises many types: for an unknown split, a malformed slice, files of another format.
  except Exception as error:
    raise UserError(_open_error(spec, folder, split, error)) from error
  shards = {name: [s["sha256"] for s in parts] for name, parts in record["shards"].items()}
  fallback = [path_as_configured(folder, where, data_dir), name]  # without recorded checksums
  identity = json.dumps([split, shards or fallback, count])
  return Prepared(spec, str(folder), source, identity, bool(record["shards"]))


def has_split(spec: str, data_dir: str, split: str) -> bool:
  """Whether a prepared dataset has a nonempty split of this name."""
  return bool(_read_record(find_folder(spec, split_spec(spec)[0], data_dir))["pairs"].get(split))


def hub_datasets(spec: str, data_dir: str) -> list[str]:
  """Returns the Hugging Face datasets, as ORG/NAME, from which an entry of data.train was prepared.

  Also of an entry that names one itself. Empty for files, and for prepared datasets that no longer
  exist.
  """
  if not is_prepared(spec):
    return [dataset_name(spec)] if is_hub_source(spec) else []
  try:
    record = _read_record(find_folder(spec, split_spec(spec)[0], data_dir))
    return [re.split("[:@]", source)[0] for source in record["source"]["hub"]]
  except (UserError, LookupError, TypeError):
    return []


def verify(spec: str, data_dir: storage.Path) -> tuple[int, int]:
  """Checks the sha256 of all shards.

  Returns:
    (number of shards, their total bytes).

  Raises:
    UserError: a shard is missing or differs; the message names it.
  """
  folder = find_folder(spec, split_spec(spec)[0], str(data_dir))
  record = _read_record(folder)
  if not record["shards"]:
    raise UserError(f"{folder} has no {RECORD} with checksums: it was prepared by something else")
  check_sizes(folder, record)
  shards = _shards(record)
  for shard in shards:
    try:
      found = sha256(folder / shard["file"])
    except storage.failures() as error:
      raise UserError(_corrupt_message(folder, shard["file"], one_line(error))) from error
    if found != shard["sha256"]:
      raise UserError(_corrupt_message(folder, shard["file"], "its sha256 is not what was written"))
  return len(shards), sum(s["bytes"] for s in shards)


def check_sizes(folder: storage.Path, record: dict[str, Any]) -> None:
  """Raises UserError if a shard is missing or its size differs from the recorded one."""
  sizes = storage.sizes(folder)
  for shard in _shards(record):
    size = sizes.get(shard["file"])
    if size is None:
      raise UserError(_corrupt_message(folder, shard["file"], "No such file or directory"))
    if size != shard["bytes"]:
      reason = f"it has {size} bytes and was written with {shard['bytes']}"
      raise UserError(_corrupt_message(folder, shard["file"], reason))


def _check_types(folder: storage.Path) -> None:
  """Raises UserError if features.json names a class outside TFDS, since TFDS would import it."""
  path, known = folder / "features.json", "tensorflow_datasets.core.features."

  def walk(value: dict[str, Any] | list[Any]) -> None:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
      if key in _CLASS_NAMES and isinstance(inner, str) and "." in inner:
        if not inner.startswith(known):
          raise UserError(
            f"{path} names {inner!r}, which is code to be run; only {known}* is allowed"
          )
      elif isinstance(inner, (dict, list)):
        walk(inner)

  try:
    if not path.is_file():
      raise FileNotFoundError("it is not there")
    walk([json.loads(path.read_text())])
  except (*storage.failures(), ValueError, RecursionError) as error:
    raise UserError(_corrupt_message(folder, path.name, one_line(error))) from error


def _open_builder(here: pathlib.Path, folder: storage.Path) -> Any:
  """TFDS's builder of the dataset at `here`, a local copy of `folder` or `folder` itself."""
  import tensorflow_datasets as tfds

  _check_types(here)  # again, because the bucket may have changed since the last check
  builder = tfds.builder_from_directory(str(here))
  for name in _listed_files(here, builder):
    if escapes_folder(here, name):
      raise UserError(
        f"{folder}: dataset_info.json lists {name!r}, outside its folder or a link out of it; get "
        "the dataset from somebody you trust, or move that file into the folder"
      )
  return builder


def _listed_files(here: pathlib.Path, builder: Any) -> list[str]:
  """The shards that dataset_info.json names."""
  splits = builder.info.splits.values()
  return [os.path.relpath(path, here) for split in splits for path in split.filepaths]


def _fetch_copy(folder: storage.Path, record: dict[str, Any]) -> pathlib.Path:
  """Downloads the files that the dataset's metadata lists, and checks the sha256 of shards."""

  def check(here: pathlib.Path) -> None:
    for shard in _shards(record):
      if sha256(here / shard["file"]) != shard["sha256"]:
        reason = "its sha256 is not what was written"
        raise UserError(_corrupt_message(folder, shard["file"], reason))

  try:
    names = storage.sizes(folder)
    metadata = [name for name in names if name in _METADATA_FILES or _LABEL_FILES.fullmatch(name)]
    shards = [shard["file"] for shard in _shards(record)]
    if not shards:  # not prepared by this project
      info = download.fetch(folder, metadata)
      shards = _listed_files(info, _open_builder(info, folder))
    return download.fetch(folder, [*metadata, *dict.fromkeys(shards)], check)
  except storage.failures() as error:
    raise UserError(f"{folder} cannot be read ({one_line(error)})") from error


def _corrupt_message(folder: str | storage.Path, shard: str, reason: str) -> str:
  path = storage.open_path(folder, "data")
  out, name, version = path.parent.parent, path.parent.name, path.name
  return (
    f"{path / shard} is corrupt ({reason}); prepare it again: python -m simpo_jax.prepare "
    f"--source=... --out={out} --name={name} --version={version} --force"
  )


def _shards(record: dict[str, Any]) -> list[dict[str, Any]]:
  return [shard for parts in record["shards"].values() for shard in parts]


def _read_record(folder: storage.Path) -> dict[str, Any]:
  """Reads prepared.json; a TFDS dataset without one gets an empty record."""
  path = folder / RECORD
  if not path.is_file():
    return {"shards": {}, "pairs": {}}
  try:
    record = json.loads(path.read_text())
    for shard in _shards(record):
      if pathlib.PurePath(shard["file"]).name != shard["file"] or escapes_folder(
        folder, shard["file"]
      ):
        raise ValueError(f"a shard named {shard['file']!r}, outside its folder or a link out of it")
      if type(shard["bytes"]) is not int or type(shard["sha256"]) is not str:
        raise ValueError(f"a shard of {shard['bytes']!r} bytes, sha256 {shard['sha256']!r}")
    dict(record["pairs"])
  except (
    *storage.failures(), ValueError, LookupError, TypeError, AttributeError, RecursionError
  ) as error:  # fmt: skip
    raise UserError(_corrupt_message(folder, RECORD, one_line(error))) from error
  return record


def _open_error(spec: str, folder: storage.Path, split: str, error: Exception) -> str:
  try:
    infos = json.loads((folder / "dataset_info.json").read_text())["splits"]
    names = [str(info["name"]) for info in infos]
  except (*storage.failures(), ValueError, KeyError, TypeError, RecursionError):
    return _corrupt_message(folder, "dataset_info.json", one_line(error))
  if re.split(r"[\[+]", split)[0] not in names:
    return f"{spec} has no split {split!r}; it has {', '.join(names)}"
  return f"{spec} (in {folder}) cannot be read: {one_line(error)}"
