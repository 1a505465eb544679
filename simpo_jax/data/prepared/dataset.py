"""Opens prepared datasets, "tfds:NAME_OR_DIR[:SPLIT]", for reading at random places.

What guards a read: shards are compared with their recorded sizes when a dataset is opened,
and with their sha256 when it is fetched from a bucket, as a whole; every record lies in a
chunk with a hash of its own, which is checked whenever it is read; `python -m
simpo_jax.prepare --verify` compares the sha256 of whole shards.
"""

import json
import os
import pathlib
import re
from typing import Any, NamedTuple

from simpo_jax import storage
from simpo_jax.data import download
from simpo_jax.data.prepared.find import as_named, find_folder
from simpo_jax.data.prepared.records import RECORD, TRAIN, to_row
from simpo_jax.errors import UserError, one_line
from simpo_jax.storage.digests import sha256
from simpo_jax.storage.paths import escapes_folder

PREFIX = "tfds:"
_PART = r"[A-Za-z_]\w*(?:\[[^\]]*\])?"
_SPEC = re.compile(rf"(.+?)(?::({_PART}(?:\+{_PART})*))?")  # a slice has a colon of its own
_CLASS_NAMES = ("pythonClassName", "python_class_name", "type")  # keys in features.json
# What TFDS reads beside the shards: of features that are labels, their names.
_ABOUT, _LABELS = ("dataset_info.json", "features.json", RECORD), re.compile(r"[^/]+\.labels\.txt")


class Prepared(NamedTuple):
  """An open dataset. Keeps nothing per record but array_record's index."""

  spec: str
  folder: str
  source: Any  # TFDS's data source
  identity: str  # of the very shards and the split: another one is another dataset

  def __len__(self):
    return len(self.source)

  def read(self, index: int) -> tuple[str, dict[str, Any]]:
    """(row id, row) at an index, as from a file; raises UserError if it is corrupt."""
    try:
      row = to_row(self.source[index])
    # A hash that does not match, a file cut short or gone, a record of other features: each
    # library has its own kinds.
    except Exception as error:
      raise UserError(_corrupt(self.folder, self._shard(index), one_line(error))) from error
    return str(row.get("id") or f"{self.spec}:{index}"), row

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
  """(name or folder, split) of "tfds:NAME_OR_DIR[:SPLIT]"."""
  match = _SPEC.fullmatch(spec.removeprefix(PREFIX))
  return (match[1], match[2]) if match else ("", None)


def open_prepared(spec: str, data_dir: str = "", split: str = TRAIN) -> Prepared:
  """Opens a dataset without reading its records.

  Args:
    spec: "tfds:NAME", "tfds:NAME:1.0.0" or "tfds:FOLDER", each with ":SPLIT", such as
      ":test" or ":train[:90%]".
    data_dir: where names are looked up; "": `default_dir()`.
    split: where the spec names none.

  Raises:
    UserError: it is not there, has no such split, or a shard is absent or of the wrong size.
  """
  where, named = split_spec(spec)
  split = named or split
  folder = find_folder(spec, where, data_dir)
  record = _record(folder)
  check_sizes(folder, record)
  _check_types(folder)
  try:
    here = folder if isinstance(folder, pathlib.Path) else _fetched(folder, record)
    builder = _builder(here, folder)
    source = builder.as_data_source(split=split)
    name, count = builder.info.full_name, len(source)
  except UserError:
    raise
  # TFDS's many: unknown split, a slice that is none, files that are not ArrayRecord.
  except Exception as error:
    raise UserError(_refused(spec, folder, split, error)) from error
  shards = {name: [s["sha256"] for s in parts] for name, parts in record["shards"].items()}
  identity = json.dumps([split, shards or [as_named(folder, where, data_dir), name], count])
  return Prepared(spec, str(folder), source, identity)


def has_split(spec: str, data_dir: str, split: str) -> bool:
  """Whether a prepared dataset has a split of its own of this name."""
  return bool(_record(find_folder(spec, split_spec(spec)[0], data_dir))["pairs"].get(split))


def hub_datasets(spec: str, data_dir: str) -> list[str]:
  """The datasets of the Hugging Face hub, ORG/NAME, that an entry of data.train was made of.

  None of a file, nor of what is no longer there.
  """
  if not is_prepared(spec):
    return []
  try:
    record = _record(find_folder(spec, split_spec(spec)[0], data_dir))
    return [re.split("[:@]", known)[0] for known in record["source"]["hub"]]
  except (UserError, LookupError, TypeError):
    return []


def verify(spec: str, data_dir: storage.Path) -> tuple[int, int]:
  """(shards, bytes) after comparing every checksum; raises UserError naming what differs."""
  folder = find_folder(spec, split_spec(spec)[0], str(data_dir))
  record = _record(folder)
  if not record["shards"]:
    raise UserError(f"{folder} has no {RECORD} with checksums: it was prepared by something else")
  check_sizes(folder, record)
  shards = _shards(record)
  for shard in shards:
    try:
      found = sha256(folder / shard["file"])
    except storage.failures() as error:
      raise UserError(_corrupt(folder, shard["file"], one_line(error))) from error
    if found != shard["sha256"]:
      raise UserError(_corrupt(folder, shard["file"], "its sha256 is not what was written"))
  return len(shards), sum(s["bytes"] for s in shards)


def check_sizes(folder: storage.Path, record: dict[str, Any]) -> None:
  """Raises UserError for a shard that is absent or not as long as it was written."""
  sizes = storage.sizes(folder)
  for shard in _shards(record):
    size = sizes.get(shard["file"])
    if size is None:
      raise UserError(_corrupt(folder, shard["file"], "No such file or directory"))
    if size != shard["bytes"]:
      why = f"it has {size} bytes and was written with {shard['bytes']}"
      raise UserError(_corrupt(folder, shard["file"], why))


def _check_types(folder: storage.Path) -> None:
  """TFDS imports whatever module features.json names; only its own features may be named."""
  path, known = folder / "features.json", "tensorflow_datasets.core.features."

  def walk(value: dict[str, Any] | list[Any]) -> None:
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
      if key in _CLASS_NAMES and isinstance(inner, str) and "." in inner:
        if not inner.startswith(known):
          raise UserError(f"{path} names {inner!r}, which is code to be run; only {known}* is used")
      elif isinstance(inner, (dict, list)):
        walk(inner)

  try:
    if not path.is_file():
      raise FileNotFoundError("it is not there")
    walk([json.loads(path.read_text())])
  except (*storage.failures(), ValueError, RecursionError) as error:
    raise UserError(_corrupt(folder, path.name, one_line(error))) from error


def _builder(here: pathlib.Path, folder: storage.Path) -> Any:
  """TFDS's builder of a dataset that lies `here`, and came from `folder`."""
  import tensorflow_datasets as tfds

  _check_types(here)  # of a bucket, what was looked at there may be another by now
  builder = tfds.builder_from_directory(str(here))
  for name in _listed(here, builder):
    if escapes_folder(here, name):
      raise UserError(
        f"{folder}: dataset_info.json lists {name!r}, outside its folder or a link out of it; get "
        "the dataset from somebody you trust, or put that file into the folder"
      )
  return builder


def _listed(here: pathlib.Path, builder: Any) -> list[str]:
  """The shards that dataset_info.json names."""
  splits = builder.info.splits.values()
  return [os.path.relpath(path, here) for split in splits for path in split.filepaths]


def _fetched(folder: storage.Path, record: dict[str, Any]) -> pathlib.Path:
  """A copy of what the dataset's own lists name, its shards as they were written."""

  def check(here: pathlib.Path) -> None:
    for shard in _shards(record):
      if sha256(here / shard["file"]) != shard["sha256"]:
        raise UserError(_corrupt(folder, shard["file"], "its sha256 is not what was written"))

  try:
    there = storage.sizes(folder)
    about = [name for name in there if name in _ABOUT or _LABELS.fullmatch(name)]
    shards = [shard["file"] for shard in _shards(record)]
    if not shards:  # made by others
      info = download.fetch(folder, about)
      shards = _listed(info, _builder(info, folder))
    return download.fetch(folder, [*about, *dict.fromkeys(shards)], check)
  except storage.failures() as error:
    raise UserError(f"{folder} cannot be read ({one_line(error)})") from error


def _corrupt(folder: str | storage.Path, shard: str, why: str) -> str:
  path = storage.open_path(folder, "data")
  out, name, version = path.parent.parent, path.parent.name, path.name
  return (
    f"{path / shard} is corrupt ({why}); prepare it again: python -m simpo_jax.prepare "
    f"--source=... --out={out} --name={name} --version={version} --force"
  )


def _shards(record: dict[str, Any]) -> list[dict[str, Any]]:
  return [shard for parts in record["shards"].values() for shard in parts]


def _record(folder: storage.Path) -> dict[str, Any]:
  """prepared.json; of a TFDS dataset by others, one without shards."""
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
    raise UserError(_corrupt(folder, RECORD, one_line(error))) from error
  return record


def _refused(spec: str, folder: storage.Path, split: str, error: Exception) -> str:
  try:
    infos = json.loads((folder / "dataset_info.json").read_text())["splits"]
    names = [str(info["name"]) for info in infos]
  except (*storage.failures(), ValueError, KeyError, TypeError, RecursionError):
    return _corrupt(folder, "dataset_info.json", one_line(error))
  if re.split(r"[\[+]", split)[0] not in names:
    return f"{spec} has no split {split!r}; it has {', '.join(names)}"
  return f"{spec} (in {folder}) cannot be read: {one_line(error)}"
