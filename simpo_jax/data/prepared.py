"""Opens prepared datasets, "tfds:NAME_OR_DIR[:SPLIT]", for reading at random places.

What guards a read: shards are compared with their recorded sizes when a dataset is opened;
every record lies in a chunk with a hash of its own, which is checked whenever it is read;
`python -m simpo_jax.prepare --verify` compares the sha256 of whole shards.
"""

import json
import os
import pathlib
import re
from typing import Any, NamedTuple

from simpo_jax.data.records import RECORD, to_row
from simpo_jax.errors import UserError, one_line

PREFIX = "tfds:"
TRAIN, HELD_OUT = "train", "test"  # the splits that `prepare` makes
_PART = r"[A-Za-z_]\w*(?:\[[^\]]*\])?"
_SPEC = re.compile(rf"(.+?)(?::({_PART}(?:\+{_PART})*))?")  # a slice has a colon of its own
_NAME = re.compile(r"[A-Za-z]\w*(/[\w.-]+)?(:\d+\.\d+\.\d+)?")
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


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
    # array_record's own kind; a hash that does not match, a file cut short or gone.
    except (RuntimeError, ValueError, OSError) as error:
      raise UserError(_corrupt(self.folder, self._shard(index), one_line(error))) from error
    return row.get("id") or f"{self.spec}:{index}", row

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


def default_dir() -> pathlib.Path:
  """Where TFDS looks for datasets."""
  return pathlib.Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()


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
  folder = _folder(spec, where, data_dir)
  record = _record(folder)
  check_sizes(folder, record)
  import tensorflow_datasets as tfds

  try:
    builder = tfds.builder_from_directory(str(folder))
    source = builder.as_data_source(split=split)
  # TFDS's many: unknown split, a slice that is none, files that are not ArrayRecord.
  except Exception as error:
    raise UserError(_refused(spec, folder, split, error)) from error
  shards = {name: [s["sha256"] for s in parts] for name, parts in record["shards"].items()}
  identity = json.dumps([split, shards or [str(folder), builder.info.full_name], len(source)])
  return Prepared(spec, str(folder), source, identity)


def has_split(spec: str, data_dir: str, split: str) -> bool:
  """Whether a prepared dataset has a split of its own of this name."""
  return bool(_record(_folder(spec, split_spec(spec)[0], data_dir))["pairs"].get(split))


def hub_datasets(spec: str, data_dir: str) -> list[str]:
  """The datasets of the Hugging Face hub, ORG/NAME, that an entry of data.train was made of.

  None of a file, nor of what is no longer there.
  """
  if not is_prepared(spec):
    return []
  try:
    record = _record(_folder(spec, split_spec(spec)[0], data_dir))
    return [re.split("[:@]", known)[0] for known in record["source"]["hub"]]
  except (UserError, LookupError, TypeError):
    return []


def verify(spec: str, data_dir: pathlib.Path) -> tuple[int, int]:
  """(shards, bytes) after comparing every checksum; raises UserError naming what differs."""
  from simpo_jax.data.shards import sha256

  folder = _folder(spec, split_spec(spec)[0], str(data_dir))
  record = _record(folder)
  if not record["shards"]:
    raise UserError(f"{folder} has no {RECORD} with checksums: it was prepared by something else")
  check_sizes(folder, record)
  shards = _shards(record)
  for shard in shards:
    try:
      found = sha256(folder / shard["file"])
    except OSError as error:
      raise UserError(_corrupt(folder, shard["file"], one_line(error))) from error
    if found != shard["sha256"]:
      raise UserError(_corrupt(folder, shard["file"], "its sha256 is not what was written"))
  return len(shards), sum(s["bytes"] for s in shards)


def check_sizes(folder: pathlib.Path, record: dict[str, Any]) -> None:
  """Raises UserError for a shard that is absent or not as long as it was written."""
  for shard in _shards(record):
    try:
      size = (folder / shard["file"]).stat().st_size
    except OSError as error:
      raise UserError(_corrupt(folder, shard["file"], error.strerror)) from error
    if size != shard["bytes"]:
      raise UserError(
        _corrupt(
          folder, shard["file"], f"it has {size} bytes and was written with {shard['bytes']}"
        )
      )


def _corrupt(folder, shard: str, why: str) -> str:
  path = pathlib.Path(folder)
  out, name, version = path.parent.parent, path.parent.name, path.name
  return (
    f"{path / shard} is corrupt ({why}); prepare it again: python -m simpo_jax.prepare "
    f"--source=... --out={out} --name={name} --version={version} --force"
  )


def _shards(record: dict[str, Any]) -> list[dict[str, Any]]:
  return [shard for parts in record["shards"].values() for shard in parts]


def _record(folder: pathlib.Path) -> dict[str, Any]:
  """prepared.json; of a TFDS dataset by others, one without shards."""
  path = folder / RECORD
  if not path.exists():
    return {"shards": {}, "pairs": {}}
  try:
    record = json.loads(path.read_text())
    for shard in _shards(record):
      if pathlib.PurePath(shard["file"]).name != shard["file"]:
        raise ValueError(f"a shard named {shard['file']!r}")
      int(shard["bytes"]), str(shard["sha256"]), dict(record["pairs"])
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
    raise UserError(_corrupt(folder, RECORD, one_line(error))) from error
  return record


def _folder(spec: str, where: str, data_dir: str) -> pathlib.Path:
  """The folder of the dataset's version: the one that is named, or the newest."""
  if not where:
    raise UserError(f"{spec}: name a prepared dataset, such as tfds:mine or tfds:data/mine")
  path = pathlib.Path(where).expanduser()
  if (path / "dataset_info.json").is_file():
    return path
  if path.is_dir() and (newest := _newest(path)):
    return newest
  root = pathlib.Path(data_dir).expanduser() if data_dir else default_dir()
  if not _NAME.fullmatch(where) or ".." in where:
    raise UserError(f"{spec}: {path} is not the folder of a prepared dataset; {_there(root)}")
  name, _, version = where.partition(":")
  found = root / name / version if version else _newest(root / name)
  if found is None or not (found / "dataset_info.json").is_file():
    raise UserError(f"{spec}: there is no such dataset in {root}; {_there(root)}")
  return found


def _newest(folder: pathlib.Path) -> pathlib.Path | None:
  versions = [
    (tuple(map(int, match.groups())), path)
    for path in (folder.iterdir() if folder.is_dir() else ())
    if (match := _VERSION.fullmatch(path.name)) and (path / "dataset_info.json").is_file()
  ]
  return max(versions)[1] if versions else None


def _there(root: pathlib.Path) -> str:
  names = sorted(p.name for p in root.iterdir() if _newest(p)) if root.is_dir() else []
  has = f"{root} has {', '.join(names)}" if names else f"{root} has none"
  return f"{has}; set --config.data.dir, or prepare it: python -m simpo_jax.prepare --help"


def _refused(spec: str, folder: pathlib.Path, split: str, error: Exception) -> str:
  try:
    infos = json.loads((folder / "dataset_info.json").read_text())["splits"]
    names = [str(info["name"]) for info in infos]
  except (OSError, ValueError, KeyError, TypeError):
    return _corrupt(folder, "dataset_info.json", one_line(error))
  if re.split(r"[\[+]", split)[0] not in names:
    return f"{spec} has no split {split!r}; it has {', '.join(names)}"
  return f"{spec} (in {folder}) cannot be read: {one_line(error)}"
