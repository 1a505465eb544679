"""Lists and downloads files of datasets on the Hugging Face hub; runs no code of theirs."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from simpo_jax.data.readers.compressed import PROMPTS
from simpo_jax.errors import UserError, one_line
from simpo_jax.storage.paths import names_outside, nearest_files, plain

_HUB_SOURCE = re.compile(r"((?![^:]*\.\.)\w[\w.-]*/\w[\w.-]*)(?::(.+))?")
_FILE_ENDINGS = (*PROMPTS.extensions, ".py", ".zip", ".tar")


class Dataset(NamedTuple):
  """A dataset on the hub: ORG/NAME, the pattern after it, its commit and its files."""

  name: str
  pattern: str | None
  commit: str
  files: list[str]


def is_hub_source(source: str) -> bool:
  """Whether a source is ORG/NAME[:PATTERN] rather than a local path."""
  match = _HUB_SOURCE.fullmatch(source)
  if not match or match[1].lower().endswith(_FILE_ENDINGS):
    return False
  return not plain(source).exists() and not plain(match[1]).exists()


def dataset_name(source: str) -> str:
  """Returns the ORG/NAME of a source on the hub."""
  return source.partition(":")[0]


def open_dataset(source: str) -> Dataset:
  """Lists the files of a dataset.

  Args:
    source: ORG/NAME[:PATTERN].

  Raises:
    UserError: there is no such dataset, or a file is named as if it lay outside of it.
  """
  import huggingface_hub

  match = _HUB_SOURCE.fullmatch(source)
  assert match, "checked by `is_hub_source`"
  try:
    info = huggingface_hub.HfApi().dataset_info(match[1])
  # No network, an unknown name, no permission: each library raises its own types.
  except Exception as error:
    raise _unreachable(source, error) from error
  names = [s.rfilename for s in info.siblings or ()]
  check_names(source, names)
  return Dataset(match[1], match[2], info.sha or "", sorted(names))


def check_names(source: str, names: Sequence[str]) -> None:
  """Raises a UserError if a file of a repository is named as if it lay outside of it."""
  for name in names:
    if names_outside(name):
      raise UserError(f"{source} has a file named {name!r}, outside its own folder; not fetched")


def download(dataset: Dataset, names: Sequence[str]) -> list[str]:
  """Downloads files, through the hub's cache; returns their paths. Raises a UserError."""
  import huggingface_hub

  try:
    return [
      huggingface_hub.hf_hub_download(
        dataset.name, name, repo_type="dataset", revision=dataset.commit or None
      )
      for name in names
    ]
  except Exception as error:
    raise _unreachable(dataset.name, error) from error


def _unreachable(source: str, error: Exception) -> UserError:
  local = plain(source)
  near = nearest_files(local) if local.parent.is_dir() else ""
  return UserError(
    f"{source} is neither on this machine nor a dataset that can be fetched "
    f"({one_line(error)}){near}; check the name, or download it and give the folder"
  )
