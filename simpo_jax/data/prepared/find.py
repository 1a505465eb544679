"""Finds the folder of a prepared dataset by its name or path in a config."""

import os
import pathlib
import re

from simpo_jax import storage
from simpo_jax.errors import UserError
from simpo_jax.storage.paths import plain

_NAME = re.compile(r"[A-Za-z]\w*(/[\w.-]+)?(:\d+\.\d+\.\d+)?")
_VERSION = re.compile(r"(\d+)\.(\d+)\.(\d+)")


def default_dir() -> storage.Path:
  """Returns TFDS's default folder: TFDS_DATA_DIR or ~/tensorflow_datasets."""
  return storage.open_path(
    os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets", "TFDS_DATA_DIR"
  )


def find_folder(spec: str, where: str, data_dir: str) -> storage.Path:
  """Returns the folder of a dataset's version: the named one, or the latest.

  Args:
    spec: the entry of data.train or data.eval, for messages.
    where: a folder, NAME or NAME:VERSION; see `dataset.split_spec`.
    data_dir: where names are looked up; "": `default_dir()`.

  Raises:
    UserError: there is no such dataset.
  """
  if not where:
    raise UserError(f"{spec}: name a prepared dataset, such as tfds:mine or tfds:data/mine")
  path = storage.open_path(where, "data.train")
  if (path / "dataset_info.json").is_file():
    return path
  if path.is_dir() and (newest := _newest_version(path)):
    return newest
  root = storage.open_path(data_dir, "--config.data.dir") if data_dir else default_dir()
  if not _NAME.fullmatch(where) or ".." in where:
    raise UserError(f"{spec}: {path} is not the folder of a prepared dataset; {_available(root)}")
  name, _, version = where.partition(":")
  found = root / name / version if version else _newest_version(root / name)
  if found is None or not (found / "dataset_info.json").is_file():
    raise UserError(f"{spec}: there is no such dataset in {root}; {_available(root)}")
  return found


def path_as_configured(folder: storage.Path, where: str, data_dir: str) -> str:
  """Returns the folder relative to the paths in the config; identifies data without checksums."""
  for name in filter(None, (where, data_dir)):
    if not storage.is_remote(name) and folder.is_relative_to(plain(name)):
      return str(pathlib.Path(name).expanduser() / folder.relative_to(plain(name)))
  return str(folder)


def _newest_version(folder: storage.Path) -> storage.Path | None:
  versions = [
    (tuple(map(int, match.groups())), path)
    for path in (folder.iterdir() if folder.is_dir() else ())
    if (match := _VERSION.fullmatch(path.name)) and (path / "dataset_info.json").is_file()
  ]
  return max(versions)[1] if versions else None


def _available(root: storage.Path) -> str:
  names = sorted(p.name for p in root.iterdir() if _newest_version(p)) if root.is_dir() else []
  has = f"{root} has {', '.join(names)}" if names else f"{root} has none"
  return f"{has}; set --config.data.dir, or prepare it: python -m simpo_jax.prepare --help"
