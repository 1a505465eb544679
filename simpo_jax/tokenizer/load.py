"""Loads the tokenizer that belongs to a model source."""

import datetime

from simpo_jax.errors import UserError
from simpo_jax.models.source import Kind, parse_source
from simpo_jax.settings import Settings
from simpo_jax.storage.paths import plain
from simpo_jax.tokenizer.huggingface import has_tokenizer, load_folder, load_gguf, load_hub
from simpo_jax.tokenizer.tokenizer import Tokenizer, byte_tokenizer, with_empty_system


def run_tokenizer(config: Settings, date: str = "") -> Tokenizer:
  """Loads the tokenizer of a run: its model's, with the chat template options of the config.

  Args:
    date: current time for the chat template, ISO 8601; "": the time of this call.
  """
  tokenizer = load_tokenizer(config.model.source, date, _read_template(config.data.chat_template))
  return with_empty_system(tokenizer) if config.data.empty_system else tokenizer


def _read_template(text: str) -> str | None:
  if not text.endswith(".jinja"):
    return text or None
  try:
    return plain(text).read_text(encoding="utf-8")
  except (OSError, ValueError) as error:
    raise UserError(
      f"--config.data.chat_template={text} is not a readable text file; name another"
    ) from error


def load_tokenizer(source: str, date: str = "", template: str | None = None) -> Tokenizer:
  """Loads the tokenizer of a model source.

  Args:
    source: see `models.source.Kind`. "embedded", and "random:FOLDER" without tokenizer files in
      the folder, use the byte tokenizer.
    date: current time for the chat template, ISO 8601; "": the time of this call.
    template: replaces the tokenizer's chat template.

  Raises:
    UserError: the source has no tokenizer, or it cannot be read.
  """
  kind, path = parse_source(source)
  date = date or datetime.datetime.now().isoformat(timespec="seconds")
  if kind is Kind.HUB:
    return load_hub(source, date, template)
  if path is None or (kind is Kind.RANDOM and not has_tokenizer(path)):
    return _byte_tokenizer(template)
  if kind is Kind.GGUF:
    return load_gguf(path, date, template)
  return load_folder(path, date, template)


def _byte_tokenizer(template: str | None) -> Tokenizer:
  if template is not None:
    raise UserError(
      "--config.data.chat_template: the byte tokenizer's template cannot be replaced; drop it"
    )
  return byte_tokenizer()
