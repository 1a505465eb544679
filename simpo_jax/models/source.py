"""Parses `--config.model.source`, for weights, tokenizer and model card."""

import enum
import pathlib
import re
from typing import NamedTuple

from simpo_jax import storage
from simpo_jax.errors import UserError
from simpo_jax.storage.paths import nearest_files, plain

_HUB_ID = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w.-]*/\w[\w.-]*")
_RANDOM = "random:"


class Kind(enum.Enum):
  """The kind of a model source."""

  EMBEDDED = "embedded"
  RANDOM = "random:FOLDER, with random weights and the folder's config and tokenizer"
  FOLDER = "a Hugging Face folder"
  GGUF = "a .gguf file"
  HUB = "a hub id OWNER/NAME"


class ModelSource(NamedTuple):
  """A model source, resolved on this machine.

  Attributes:
    path: the existing folder or .gguf file; None for the embedded model, and for a hub id
      (nothing is downloaded yet).
  """

  kind: Kind
  path: pathlib.Path | None


def parse_source(source: str) -> ModelSource:
  """Resolves a source; an existing folder takes precedence over a hub id.

  Raises:
    UserError: the source does not exist.
  """
  if storage.is_remote(source):
    raise UserError(
      f"--config.model.source={source}: models are read from local folders, .gguf files and the "
      "hub; copy it to a local folder and name that"
    )
  if source == Kind.EMBEDDED.value:
    return ModelSource(Kind.EMBEDDED, None)
  if source.startswith(_RANDOM):
    folder = plain(source.removeprefix(_RANDOM))
    if not folder.is_dir():
      what = "is not a folder" if folder.exists() else f"does not exist{nearest_files(folder)}"
      raise UserError(f"--config.model.source={source}: {folder} {what}")
    return ModelSource(Kind.RANDOM, folder)
  path = plain(source)
  if path.is_dir():
    return ModelSource(Kind.FOLDER, path)
  if path.suffix == ".gguf":
    if not path.exists():
      raise UserError(f"--config.model.source: {source} does not exist{nearest_files(path)}")
    return ModelSource(Kind.GGUF, path)
  if path.exists():
    raise UserError(
      f"--config.model.source: {source} is neither a folder nor a .gguf file; give the folder that "
      "holds it"
    )
  if not _HUB_ID.fullmatch(source):
    raise UserError(
      f"--config.model.source: the folder {source} does not exist{nearest_files(path)} "
      "(others: embedded, random:FOLDER, a .gguf file, a hub id OWNER/NAME)"
    )
  return ModelSource(Kind.HUB, None)


def path_in(source: str) -> str:
  """Returns the path part of a source."""
  return source.removeprefix(_RANDOM)


def has_random_weights(source: str) -> bool:
  """Whether the weights are randomly initialized instead of read."""
  return source == Kind.EMBEDDED.value or source.startswith(_RANDOM)
