"""The tokenizer of a run, from wherever its model comes from."""

import datetime
import pathlib
import re

from simpo_jax.data.hf_tokenizer import has_tokenizer, load_hub, load_local
from simpo_jax.data.sources import nearest_files
from simpo_jax.data.tokenizer import Tokenizer, byte_tokenizer, with_empty_system
from simpo_jax.errors import UserError

_HUB_ID = re.compile(r"(?!.*\.\.)\w[\w.-]*(/\w[\w.-]*)?")


def run_tokenizer(config, date: str = "") -> Tokenizer:
  """The tokenizer of a run: its model's, with the chat template that the config asks for."""
  tokenizer = load_tokenizer(config.model.source, date, _template(config.data.chat_template))
  return with_empty_system(tokenizer) if config.data.empty_system else tokenizer


def _template(text: str) -> str | None:
  if not text.endswith(".jinja"):
    return text or None
  try:
    return pathlib.Path(text).expanduser().read_text(encoding="utf-8")
  except (OSError, ValueError) as error:
    raise UserError(f"--config.data.chat_template={text} is no text file to be read") from error


def load_tokenizer(source: str, date: str = "", template: str | None = None) -> Tokenizer:
  """The tokenizer of a model source.

  Args:
    source: "embedded", a Hugging Face folder, a .gguf file, a hub id, or
      "random:FOLDER" (FOLDER's tokenizer if it has one, else the byte tokenizer).
    date: what its chat template takes for now, ISO 8601; "": the time of this call.
    template: a chat template in place of the tokenizer's own.

  Raises:
    UserError: there is no tokenizer there, or none that can be read.
  """
  if source == "embedded":
    return _own_template(template)
  date = date or datetime.datetime.now().isoformat(timespec="seconds")
  if source.startswith("random:"):
    folder = pathlib.Path(source.removeprefix("random:")).expanduser()
    if not folder.is_dir():
      raise UserError(f"{source}: {folder} is not a folder{nearest_files(folder)}")
    if has_tokenizer(folder):
      return load_local(folder, None, date, template)
    return _own_template(template)
  path = pathlib.Path(source).expanduser()
  if path.is_dir():
    return load_local(path, None, date, template)
  if path.is_file():
    if path.suffix != ".gguf":
      raise UserError(f"{source} is a file but not a .gguf; give the folder that holds it")
    return load_local(path.parent, path.name, date, template)
  if path.suffix == ".gguf" or not _HUB_ID.fullmatch(source):
    raise UserError(f"{source} does not exist{nearest_files(path)}")
  return load_hub(source, date, template)


def _own_template(template: str | None) -> Tokenizer:
  if template is not None:
    raise UserError("--config.data.chat_template: the byte tokenizer has none but its own")
  return byte_tokenizer()
