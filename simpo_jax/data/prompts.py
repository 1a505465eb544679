"""Loads, tokenizes and validates the prompts for generation."""

import functools
import json
import pathlib
import re
import string
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from simpo_jax.config_check import range_problem
from simpo_jax.data.row_files import Malformed, find_file, open_lines, read_rows
from simpo_jax.data.row_formats import SkipRow, to_messages
from simpo_jax.data.types import Message, Prompt
from simpo_jax.errors import UserError, shown
from simpo_jax.settings import FIELDS, GenerateSettings
from simpo_jax.tokenizer.chat_template import TemplateFailed
from simpo_jax.tokenizer.tokenizer import Tokenizer, encode_with_bos

_WIDE_FIELD = re.compile(r"\d{3,}|{")  # a format spec with a width above 99 or a nested field
_PROMPT_FIELDS = ("messages", "prompt", "conversations")  # a row has one of these
_TABLE_EXTENSIONS = (".json", ".json.gz", ".jsonl.gz", ".parquet")
# Fields of `config.generate` that a row may override for its prompt.
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")


def load_prompts(
  generate: GenerateSettings, tokenizer: Tokenizer, skipped: list[str] | None = None
) -> list[Prompt]:
  """Loads the prompts of the config section `generate`, numbered from 0.

  Args:
    skipped: receives a message for each unusable prompt, which is then left out (the others keep
      their numbers); None: an unusable prompt is an error.

  Raises:
    UserError: there are no prompts, one is empty, malformed or longer than
      `generate.max_prompt_length`, or the template of synthetic prompts is invalid.
  """
  prompts = []
  for index, (origin, read) in enumerate(_sources(generate)):
    try:
      messages, settings = read()
      tokens = np.asarray(encode_messages(origin, messages, tokenizer), np.int32)
      if not len(tokens):
        raise UserError(f"{origin} is empty; give it some text")
      if len(tokens) > generate.max_prompt_length:
        raise UserError(
          f"prompt {index} ({origin}) has {len(tokens)} tokens, more than"
          f" generate.max_prompt_length={generate.max_prompt_length}; raise that or shorten it"
        )
      prompts.append(Prompt(index, messages[-1]["content"], tokens, settings))
    except UserError as error:
      if skipped is None:
        raise
      skipped.append(str(error))
  return prompts


_ReadPrompt = Callable[[], tuple[tuple[Message, ...], dict[str, float]]]  # may raise a UserError
_Source = tuple[str, _ReadPrompt]


def _sources(generate: GenerateSettings) -> Iterator[_Source]:
  """Yields (origin, function that returns the prompt's messages and settings)."""
  if generate.prompt_list:
    for i, text in enumerate(generate.prompt_list):
      origin = f"generate.prompt_list[{i}]"
      yield origin, functools.partial(_user_prompt, text, origin)
  elif generate.prompts == "synthetic":
    yield from _synthetic(generate.template, generate.count)
  else:
    yield from _from_file(generate.prompts, generate.count)


def _synthetic(template: str, count: int) -> Iterator[_Source]:
  if count < 1:
    raise UserError(f"generate.count={count} must be at least 1 for synthetic prompts")
  try:
    parsed = string.Formatter().parse(template)
    fields = [(name, spec or "") for _, name, spec, _ in parsed if name is not None]
    if {name for name, _ in fields} != {"index"}:
      raise ValueError
    if any(_WIDE_FIELD.search(spec) for _, spec in fields):
      raise ValueError
    texts = [template.format(index=i) for i in range(count)]
  except (ValueError, LookupError, OverflowError) as error:
    raise UserError(
      f"generate.template {shown(template)!r} must have the field {{index}} and no other"
      " (write {{ and }} for braces), and no width above 99"
    ) from error
  for i, text in enumerate(texts):
    yield f"synthetic prompt {i}", functools.partial(_user_prompt, text, "generate.template")


def _from_file(path: str, count: int) -> Iterator[_Source]:
  if count < 0:
    raise UserError(f"generate.count={count} must be 0 (all) or positive")
  file = find_file(path)
  name = file.name.lower()
  if not name.endswith((".txt", ".jsonl", *_TABLE_EXTENSIONS)):
    raise UserError(
      f"generate.prompts={path} must be synthetic, a .txt file (one prompt per line) or a"
      f" .jsonl file of messages, or end in {', '.join(_TABLE_EXTENSIONS)}"
    )
  if name.endswith(_TABLE_EXTENSIONS):
    rows = ((origin, functools.partial(_from_row, row, origin)) for origin, row in read_rows(path))
  else:
    read_line = _from_text if name.endswith(".txt") else _from_json
    rows = _from_lines(file, path, read_line)
  found = 0
  for source in rows:
    if count and found == count:
      return
    found += 1
    yield source
  if not found:
    raise UserError(f"{path} has no prompts; write one per line")


def _from_lines(
  file: pathlib.Path, path: str, read_line: Callable[[bytes, str], Any]
) -> Iterator[_Source]:
  try:
    for number, line in open_lines(file):
      origin = f"{file.name}:{number}"
      yield origin, functools.partial(read_line, line, origin)
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror})") from error


def _from_text(line: bytes, origin: str) -> tuple[tuple[Message, ...], dict[str, float]]:
  return _user_prompt(_decode(line, origin).strip(), origin)


def _decode(line: bytes, origin: str) -> str:
  try:
    return line.decode("utf-8")
  except UnicodeDecodeError as error:
    raise UserError(f"{origin} is not UTF-8 text; save the file as UTF-8") from error


def _from_json(line: bytes, origin: str) -> tuple[tuple[Message, ...], dict[str, float]]:
  try:
    row = json.loads(_decode(line, origin))
  except (ValueError, RecursionError) as error:
    raise UserError(f"{origin} is not valid JSON; write one object per line") from error
  return _from_row(row, origin)


def _from_row(row: Any, origin: str) -> tuple[tuple[Message, ...], dict[str, float]]:
  if isinstance(row, Malformed):
    raise UserError(f"{origin} is not a row of a table ({row.reason})")
  settings = {}
  if isinstance(row, dict):
    # In a table, null means that the row does not set the column.
    given = {name: row[name] for name in SETTINGS if row.get(name) is not None}
    settings = {name: _check_setting(name, value, origin) for name, value in given.items()}
    row = next((row[name] for name in _PROMPT_FIELDS if row.get(name) is not None), None)
    if isinstance(row, str):
      return _user_message(row, origin), settings
  if not isinstance(row, list):
    raise UserError(
      f'{origin} needs {{"messages": [...]}}, {{"prompt": ...}} or a list of messages'
    )
  try:
    messages = to_messages(row)
  except SkipRow as error:
    raise UserError(f"{origin} is not a conversation ({error.reason})") from error
  if not messages or messages[-1]["role"] != "user":
    raise UserError(f"{origin} must end with a message by the user")
  _user_message(messages[-1]["content"], origin)
  return messages, settings


def _check_setting(name: str, value: Any, origin: str) -> float:
  integral = name in ("top_k", "max_new_tokens")
  if type(value) is not int and (integral or type(value) is not float):
    what = "a whole number" if integral else "a number"
    raise UserError(f"{origin}: {name} is {json.dumps(value)}, and must be {what}")
  if problem := range_problem(FIELDS[f"generate.{name}"], value):
    raise UserError(f"{origin}: {name}={value} {problem}")
  return value


def _user_message(text: Any, origin: str) -> tuple[Message, ...]:
  if not isinstance(text, str):
    raise UserError(f"{origin} is not a string but a {type(text).__name__}")
  if not text.strip():
    raise UserError(f"{origin} is empty; give it some text")
  try:
    text.encode("utf-8")
  except UnicodeEncodeError as error:
    raise UserError(
      f"{origin} has a lone surrogate, which no tokenizer reads; remove it"
    ) from error
  return ({"role": "user", "content": text},)


def _user_prompt(text: Any, origin: str) -> tuple[tuple[Message, ...], dict[str, float]]:
  return _user_message(text, origin), {}


def encode_messages(origin: str, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
  """Encodes a conversation up to the start of the answer.

  Uses the chat template. Without one, a single message is encoded as plain text.

  Args:
    origin: where the conversation comes from, for error messages.

  Raises:
    UserError: the template rejects it, or several messages have no template.
  """
  if tokenizer.chat_template is not None:
    try:
      return encode_with_bos(tokenizer, tokenizer.render(messages, True))
    except TemplateFailed as error:
      raise UserError(f"the chat template refuses {origin}: {error}") from error
  if len(messages) > 1:
    raise UserError(f"{origin} has several messages, but the tokenizer has no chat template")
  return encode_with_bos(tokenizer, tokenizer.escape(messages[0]["content"]))
