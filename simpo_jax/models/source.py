"""What `--config.model.source` names: the one parser of it, for weights, tokenizer and card."""

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
  """Of a model source."""

  EMBEDDED = "embedded"
  RANDOM = "random:FOLDER, of which the config and the tokenizer count"
  FOLDER = "a Hugging Face folder"
  GGUF = "a .gguf file"
  HUB = "a hub id OWNER/NAME"


class ModelSource(NamedTuple):
  """A source as it was found on this machine.

  Attributes:
    path: the folder, or the .gguf file, which exists; None of the embedded model, and of a hub id,
      which nothing has been fetched of.
  """

  kind: Kind
  path: pathlib.Path | None


def parse_source(source: str) -> ModelSource:
  """Finds out what a source is; a folder of its name comes before a hub id.

  Raises:
    UserError: there is nothing of that name.
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
  """The path that a source would be, if it is one."""
  return source.removeprefix(_RANDOM)


def has_random_weights(source: str) -> bool:
  """Whether the weights are drawn, not read: there is no model that others could know."""
  return source == Kind.EMBEDDED.value or source.startswith(_RANDOM)
