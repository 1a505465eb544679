"""The tokenizer of a run, from wherever its model comes from."""

import datetime

from simpo_jax.errors import UserError
from simpo_jax.models.source import Kind, parse_source
from simpo_jax.settings import Settings
from simpo_jax.storage.paths import plain
from simpo_jax.tokenizer.huggingface import has_tokenizer, load_hub, load_local
from simpo_jax.tokenizer.tokenizer import Tokenizer, byte_tokenizer, with_empty_system


def run_tokenizer(config: Settings, date: str = "") -> Tokenizer:
  """The tokenizer of a run: its model's, with the chat template that the config asks for."""
  tokenizer = load_tokenizer(config.model.source, date, _template(config.data.chat_template))
  return with_empty_system(tokenizer) if config.data.empty_system else tokenizer


def _template(text: str) -> str | None:
  if not text.endswith(".jinja"):
    return text or None
  try:
    return plain(text).read_text(encoding="utf-8")
  except (OSError, ValueError) as error:
    raise UserError(f"--config.data.chat_template={text} is no text file to be read") from error


def load_tokenizer(source: str, date: str = "", template: str | None = None) -> Tokenizer:
  """The tokenizer of a model source.

  Args:
    source: see `models.source.Kind`; of "embedded", and of "random:FOLDER" without a tokenizer
      in it, the byte tokenizer.
    date: what its chat template takes for now, ISO 8601; "": the time of this call.
    template: a chat template in place of the tokenizer's own.

  Raises:
    UserError: there is no tokenizer there, or none that can be read.
  """
  kind, path = parse_source(source)
  date = date or datetime.datetime.now().isoformat(timespec="seconds")
  if kind is Kind.HUB:
    return load_hub(source, date, template)
  if path is None or (kind is Kind.RANDOM and not has_tokenizer(path)):
    return _own_template(template)
  if kind is Kind.GGUF:
    return load_local(path.parent, path.name, date, template)
  return load_local(path, None, date, template)


def _own_template(template: str | None) -> Tokenizer:
  if template is not None:
    raise UserError("--config.data.chat_template: the byte tokenizer has none but its own")
  return byte_tokenizer()
