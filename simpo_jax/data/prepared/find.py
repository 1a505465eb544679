"""Finds the folder of a prepared dataset by the name that a config has for it."""

import os
import pathlib
import re

from simpo_jax import storage
from simpo_jax.errors import UserError
from simpo_jax.storage.paths import plain

_NAME = re.compile(r"[A-Za-z]\w*(/[\w.-]+)?(:\d+\.\d+\.\d+)?")
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def default_dir() -> storage.Path:
  """Where TFDS looks for datasets."""
  return storage.open_path(
    os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", "TFDS_DATA_DIR"
  )


def find_folder(spec: str, where: str, data_dir: str) -> storage.Path:
  """The folder of the dataset's version: the one that is named, or the newest."""
  if not where:
    raise UserError(f"{spec}: name a prepared dataset, such as tfds:mine or tfds:data/mine")
  path = storage.open_path(where, "data.train")
  if (path / "dataset_info.json").is_file():
    return path
  if path.is_dir() and (newest := _newest(path)):
    return newest
  root = storage.open_path(data_dir, "--config.data.dir") if data_dir else default_dir()
  if not _NAME.fullmatch(where) or ".." in where:
    raise UserError(f"{spec}: {path} is not the folder of a prepared dataset; {_there(root)}")
  name, _, version = where.partition(":")
  found = root / name / version if version else _newest(root / name)
  if found is None or not (found / "dataset_info.json").is_file():
    raise UserError(f"{spec}: there is no such dataset in {root}; {_there(root)}")
  return found


def as_named(folder: storage.Path, where: str, data_dir: str) -> str:
  """The folder as the config names it: what stands for a dataset that has no checksums."""
  for name in filter(None, (where, data_dir)):
    if not storage.is_remote(name) and folder.is_relative_to(plain(name)):
      return str(pathlib.Path(name).expanduser() / folder.relative_to(plain(name)))
  return str(folder)


def _newest(folder: storage.Path) -> storage.Path | None:
  versions = [
    (tuple(map(int, match.groups())), path)
    for path in (folder.iterdir() if folder.is_dir() else ())
    if (match := _VERSION.fullmatch(path.name)) and (path / "dataset_info.json").is_file()
  ]
  return max(versions)[1] if versions else None


def _there(root: storage.Path) -> str:
  names = sorted(p.name for p in root.iterdir() if _newest(p)) if root.is_dir() else []
  has = f"{root} has {', '.join(names)}" if names else f"{root} has none"
  return f"{has}; set --config.data.dir, or prepare it: python -m simpo_jax.prepare --help"
