"""Loads the tokenizer that belongs to a model source."""

import datetime
import os

from simpo_jax.errors import UserError, first_line, shown
from simpo_jax.models.source import Kind, parse_source
from simpo_jax.settings import Settings
from simpo_jax.storage.paths import nearest_files, plain
from simpo_jax.tokenizer.chat_template import TemplateFailed
from simpo_jax.tokenizer.huggingface import has_tokenizer, load_folder, load_gguf, load_hub
from simpo_jax.tokenizer.tokenizer import Tokenizer, byte_tokenizer, with_empty_system

_ADVICE = "name a file that holds the template"


class UnusableTemplate(UserError):
  """`data.chat_template` is no chat template.

  Attributes:
    problem: the message without the advice, which is for the command line of a run.
  """

  def __init__(self, problem: str, advice: str):
    super().__init__(f"{problem}; {advice}")
    self.problem = problem


def run_tokenizer(config: Settings, date: str = "") -> Tokenizer:
  """Loads the tokenizer of a run: its model's, with the chat template options of the config.

  Args:
    date: current time for the chat template, ISO 8601; "": the time of this call.

  Raises:
    UnusableTemplate: `data.chat_template` is not a chat template.
    UserError: see `load_tokenizer`.
  """
  template = _read_template(config.data.chat_template)
  tokenizer = load_tokenizer(config.model.source, date, template)
  if template is not None:
    _check_template(tokenizer, config.data.chat_template)
  return with_empty_system(tokenizer) if config.data.empty_system else tokenizer


def is_jinja(setting: str) -> bool:
  """Whether a setting is a template's text, not the name of a file that holds one."""
  return "{{" in setting or "{%" in setting


def _read_template(setting: str) -> str | None:
  """The template of `data.chat_template`, the name of a file or Jinja text."""
  if not setting:
    return None
  field = f"--config.data.chat_template={shown(setting)}"
  try:
    is_file = "\n" not in setting and os.path.exists(plain(setting))
    text = plain(setting).read_text(encoding="utf-8") if is_file else setting
  except (OSError, ValueError) as error:
    problem = f"{field} is not a readable text file ({first_line(error)})"
    raise UnusableTemplate(problem, _ADVICE) from error
  if is_jinja(text):
    return text
  if is_file:
    raise UnusableTemplate(f"{field} is not a chat template: it has neither {{{{ nor {{%", _ADVICE)
  near = "" if "\n" in setting or len(setting) > 255 else nearest_files(plain(setting))
  raise UnusableTemplate(
    f"{field} is neither a file nor Jinja text, which has {{{{ or {{%", f"{_ADVICE}{near}"
  )


def _check_template(tokenizer: Tokenizer, setting: str) -> None:
  """Raises UnusableTemplate if it cannot be rendered or does not show what users say."""
  field, probe = f"--config.data.chat_template={shown(setting)}", "simpo probe"
  try:
    text = tokenizer.render([{"role": "user", "content": probe}], True)
  except TemplateFailed as error:
    problem = f"{field} refuses a conversation of one user's message: {error}"
    raise UnusableTemplate(problem, "fix the template") from error
  if probe not in text:
    raise UnusableTemplate(
      f"{field} does not show the content of messages",
      "is it the template of this kind of model? It gets messages with role and content",
    )


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
