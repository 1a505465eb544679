"""Downloads files of datasets on the Hugging Face hub; runs no code of theirs."""

import fnmatch
import pathlib
import re
from collections.abc import Sequence

from simpo_jax.data.file_chunks import File
from simpo_jax.data.row_files import EXTENSIONS
from simpo_jax.errors import UserError, one_line
from simpo_jax.storage.paths import plain

_HUB_SOURCE = re.compile(r"((?![^:]*\.\.)\w[\w.-]*/\w[\w.-]*)(?::(.+))?")
_SHARD_SUFFIX = re.compile(r"-\d{5}-of-\d{5}.*$")
_MAX_LISTED = 12


def is_hub_source(source: str) -> bool:
  """Whether a source is ORG/NAME[:PATTERN] rather than a local path."""
  match = _HUB_SOURCE.fullmatch(source)
  local = plain(source)
  return bool(match) and not local.exists() and not match[1].lower().endswith(EXTENSIONS)


def download(source: str) -> tuple[list[File], str]:
  """Downloads the files of a dataset, through the hub's cache.

  Args:
    source: ORG/NAME[:PATTERN].

  Returns:
    (files, commit hash of the dataset).

  Raises:
    UserError: there is no such dataset, no file matches, or the dataset has several splits and
      no pattern selects one.
  """
  import huggingface_hub

  match = _HUB_SOURCE.fullmatch(source)
  assert match, "checked by `is_hub_source`"
  name, pattern = match[1], match[2]
  try:
    info = huggingface_hub.HfApi().dataset_info(name)
    names = [s.rfilename for s in info.siblings or ()]
    chosen = select_files(source, names, pattern)
    paths = [
      huggingface_hub.hf_hub_download(name, n, repo_type="dataset", revision=info.sha)
      for n in chosen
    ]
  except UserError:
    raise
  # No network, an unknown name, no permission: each library raises its own types.
  except Exception as error:
    raise UserError(
      f"{source} is neither on this machine nor a dataset that can be fetched "
      f"({one_line(error)}); check the name, or download it and give the folder"
    ) from error
  return [File(p, n) for p, n in zip(paths, chosen, strict=True)], info.sha or ""


def select_files(source: str, names: Sequence[str], pattern: str | None) -> list[str]:
  """Returns the files of a dataset repository to download, sorted; raises UserError.

  Args:
    source: ORG/NAME[:PATTERN], for messages.
    names: all files of the repository.
    pattern: an fnmatch pattern; None: all files, which must be of one split.
  """
  for name in names:
    path = pathlib.PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
      raise UserError(f"{source} has a file named {name!r}, outside its own folder; not fetched")
  known = sorted(n for n in names if n.lower().endswith(EXTENSIONS))
  chosen = [n for n in known if fnmatch.fnmatch(n, pattern or "*")]
  if not chosen:
    has = ", ".join(known[:_MAX_LISTED]) or "no file of a known kind"
    raise UserError(f"{source}: no file matches; the dataset has {has}")
  splits = sorted({_SHARD_SUFFIX.sub("-*", n) for n in chosen})
  if pattern is None and len(splits) > 1:
    more = " ..." if len(splits) > _MAX_LISTED else ""
    raise UserError(
      f"{source} has several splits; choose one, such as {source}:{splits[-1]} "
      f"(of {', '.join(splits[:_MAX_LISTED])}{more})"
    )
  return chosen
