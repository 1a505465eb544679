"""Datasets of the Hugging Face hub: their files, fetched as they are; no code of theirs runs."""

import fnmatch
import pathlib
import re
from collections.abc import Sequence

from simpo_jax.data.file_chunks import File
from simpo_jax.data.row_files import EXTENSIONS
from simpo_jax.errors import UserError, one_line
from simpo_jax.storage.paths import plain

_ID = re.compile(r"((?![^:]*\.\.)\w[\w.-]*/\w[\w.-]*)(?::(.+))?")
_SHARD = re.compile(r"-\d{5}-of-\d{5}.*$")
_SHOWN = 12


def names_hub(source: str) -> bool:
  """Whether a source is ORG/NAME[:PATTERN] rather than something on this machine."""
  match = _ID.fullmatch(source)
  local = plain(source)
  return bool(match) and not local.exists() and not match[1].lower().endswith(EXTENSIONS)


def download(source: str) -> tuple[list[File], str]:
  """(files, revision) of a dataset; what the hub's cache has is not fetched again.

  Raises:
    UserError: no such dataset, no file matches, several splits and no pattern to choose.
  """
  import huggingface_hub

  match = _ID.fullmatch(source)
  assert match, "`is_hub_id` has said so"
  name, pattern = match[1], match[2]
  try:
    info = huggingface_hub.HfApi().dataset_info(name)
    names = [s.rfilename for s in info.siblings or ()]
    chosen = choose(source, names, pattern)
    paths = [
      huggingface_hub.hf_hub_download(name, n, repo_type="dataset", revision=info.sha)
      for n in chosen
    ]
  except UserError:
    raise
  # No network, no such name, no permission: each library has its own kinds.
  except Exception as error:
    raise UserError(
      f"{source} is neither on this machine nor a dataset that can be fetched "
      f"({one_line(error)}); check the name, or download it and give the folder"
    ) from error
  return [File(p, n) for p, n in zip(paths, chosen, strict=True)], info.sha or ""


def choose(source: str, names: Sequence[str], pattern: str | None) -> list[str]:
  """Those of a repository's files that are meant, in order; see `download`."""
  for name in names:
    path = pathlib.PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
      raise UserError(f"{source} has a file named {name!r}, outside its own folder; not fetched")
  known = sorted(n for n in names if n.lower().endswith(EXTENSIONS))
  chosen = [n for n in known if fnmatch.fnmatch(n, pattern or "*")]
  if not chosen:
    has = ", ".join(known[:_SHOWN]) or "no file of a known kind"
    raise UserError(f"{source}: no file matches; the dataset has {has}")
  splits = sorted({_SHARD.sub("-*", n) for n in chosen})
  if pattern is None and len(splits) > 1:
    more = " ..." if len(splits) > _SHOWN else ""
    raise UserError(
      f"{source} has several splits; choose one, such as {source}:{splits[-1]} "
      f"(of {', '.join(splits[:_SHOWN])}{more})"
    )
  return chosen
