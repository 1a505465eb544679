"""The prompts to generate from, tokenised and checked before anything runs."""

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
from simpo_jax.data.row_formats import Message, SkipRow, to_messages
from simpo_jax.data.types import Prompt
from simpo_jax.errors import UserError, shown
from simpo_jax.settings import FIELDS, GenerateSettings
from simpo_jax.tokenizer.chat_template import TemplateFailed
from simpo_jax.tokenizer.tokenizer import Tokenizer, encode_with_bos

_WIDE = re.compile(r"\d{3,}|{")  # of a field in the template: a width above 99, or one to come
_FIELDS = ("messages", "prompt", "conversations")  # one of which a row has
_TABLES = (".json", ".json.gz", ".jsonl.gz", ".parquet")
# Fields of `config.generate` that a row of a .jsonl file may set for its own prompt.
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")


def load_prompts(
  generate: GenerateSettings, tokenizer: Tokenizer, skipped: list[str] | None = None
) -> list[Prompt]:
  """The prompts of the section `generate` of the config, numbered from 0.

  Args:
    skipped: where to tell of prompts that cannot be used, which are then left out and keep
      their numbers; None: they are errors.

  Raises:
    UserError: there is none, one is empty, malformed or longer than
      `generate.max_prompt_length`, or the template of synthetic ones is wrong.
  """
  prompts = []
  for index, (place, read) in enumerate(_sources(generate)):
    try:
      messages, settings = read()
      tokens = np.asarray(encode_messages(place, messages, tokenizer), np.int32)
      if not len(tokens):
        raise UserError(f"{place} is empty; give it some text")
      if len(tokens) > generate.max_prompt_length:
        raise UserError(
          f"prompt {index} ({place}) has {len(tokens)} tokens, more than"
          f" generate.max_prompt_length={generate.max_prompt_length}; raise that or shorten it"
        )
      prompts.append(Prompt(index, messages[-1]["content"], tokens, settings))
    except UserError as error:
      if skipped is None:
        raise
      skipped.append(str(error))
  return prompts


_Read = Callable[[], tuple[tuple[Message, ...], dict[str, float]]]  # may raise a UserError
_Source = tuple[str, _Read]


def _sources(generate: GenerateSettings) -> Iterator[_Source]:
  """Yields (where it stands, what reads its messages and its own settings)."""
  if generate.prompt_list:
    for i, text in enumerate(generate.prompt_list):
      place = f"generate.prompt_list[{i}]"
      yield place, functools.partial(_only_user, text, place)
  elif generate.prompts == "synthetic":
    yield from _synthetic(generate.template, generate.count)
  else:
    yield from _from_file(generate.prompts, generate.count)


def _synthetic(template: str, count: int) -> Iterator[_Source]:
  if count < 1:
    raise UserError(f"generate.count={count} must be at least 1 for synthetic prompts")
  try:
    parsed = string.Formatter().parse(template)
    fields = [(name, how or "") for _, name, how, _ in parsed if name is not None]
    if {name for name, _ in fields} != {"index"} or any(_WIDE.search(how) for _, how in fields):
      raise ValueError
    texts = [template.format(index=i) for i in range(count)]
  except (ValueError, LookupError, OverflowError) as error:
    raise UserError(
      f"generate.template {shown(template)!r} must have the field {{index}} and no other"
      " (write {{ and }} for braces), and no width above 99"
    ) from error
  for i, text in enumerate(texts):
    yield f"synthetic prompt {i}", functools.partial(_only_user, text, "generate.template")


def _from_file(path: str, count: int) -> Iterator[_Source]:
  if count < 0:
    raise UserError(f"generate.count={count} must be 0 (all) or positive")
  file = find_file(path)
  name = file.name.lower()
  if not name.endswith((".txt", ".jsonl", *_TABLES)):
    raise UserError(
      f"generate.prompts={path} must be synthetic, a .txt file (one prompt per line) or a"
      f" .jsonl file of messages, or end in {', '.join(_TABLES)}"
    )
  if name.endswith(_TABLES):
    rows = ((place, functools.partial(_from_row, row, place)) for place, row in read_rows(path))
  else:
    of_line = _from_text if name.endswith(".txt") else _from_json
    rows = _lines_of(file, path, of_line)
  found = 0
  for source in rows:
    if count and found == count:
      return
    found += 1
    yield source
  if not found:
    raise UserError(f"{path} has no prompts; write one per line")


def _lines_of(
  file: pathlib.Path, path: str, of_line: Callable[[bytes, str], Any]
) -> Iterator[_Source]:
  try:
    for number, line in open_lines(file):
      place = f"{file.name}:{number}"
      yield place, functools.partial(of_line, line, place)
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror})") from error


def _from_text(line: bytes, place: str) -> tuple[tuple[Message, ...], dict[str, float]]:
  return _only_user(_utf8(line, place).strip(), place)


def _utf8(line: bytes, place: str) -> str:
  try:
    return line.decode("utf-8")
  except UnicodeDecodeError as error:
    raise UserError(f"{place} is not UTF-8 text; save the file as UTF-8") from error


def _from_json(line: bytes, place: str) -> tuple[tuple[Message, ...], dict[str, float]]:
  try:
    row = json.loads(_utf8(line, place))
  except (ValueError, RecursionError) as error:
    raise UserError(f"{place} is not valid JSON; write one object per line") from error
  return _from_row(row, place)


def _from_row(row: Any, place: str) -> tuple[tuple[Message, ...], dict[str, float]]:
  if isinstance(row, Malformed):
    raise UserError(f"{place} is not a row of a table ({row.reason})")
  settings = {}
  if isinstance(row, dict):
    # A table has a column for all rows: there, null is no setting.
    given = {name: row[name] for name in SETTINGS if row.get(name) is not None}
    settings = {name: _setting(name, value, place) for name, value in given.items()}
    row = next((row[name] for name in _FIELDS if row.get(name) is not None), None)
    if isinstance(row, str):
      return _user(row, place), settings
  if not isinstance(row, list):
    raise UserError(f'{place} needs {{"messages": [...]}}, {{"prompt": ...}} or a list of messages')
  try:
    messages = to_messages(row)
  except SkipRow as error:
    raise UserError(f"{place} is not a conversation ({error.reason})") from error
  if not messages or messages[-1]["role"] != "user":
    raise UserError(f"{place} must end with a message by the user")
  _user(messages[-1]["content"], place)
  return messages, settings


def _setting(name: str, value: Any, place: str) -> float:
  whole = name in ("top_k", "max_new_tokens")
  if type(value) is not int and (whole or type(value) is not float):
    what = "a whole number" if whole else "a number"
    raise UserError(f"{place}: {name} is {json.dumps(value)}, and must be {what}")
  if problem := range_problem(FIELDS[f"generate.{name}"], value):
    raise UserError(f"{place}: {name}={value} {problem}")
  return value


def _user(text: Any, place: str) -> tuple[Message, ...]:
  if not isinstance(text, str):
    raise UserError(f"{place} is not a string but a {type(text).__name__}")
  if not text.strip():
    raise UserError(f"{place} is empty; give it some text")
  try:
    text.encode("utf-8")
  except UnicodeEncodeError as error:
    raise UserError(f"{place} has a lone surrogate, which no tokenizer reads; remove it") from error
  return ({"role": "user", "content": text},)


def _only_user(text: Any, place: str) -> tuple[tuple[Message, ...], dict[str, float]]:
  return _user(text, place), {}


def encode_messages(place: str, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
  """The tokens of a conversation up to where the answer begins; plain text without a template.

  Args:
    place: where it comes from, for messages.
  """
  if tokenizer.chat_template is not None:
    try:
      return encode_with_bos(tokenizer, tokenizer.render(messages, True))
    except TemplateFailed as error:
      raise UserError(f"the chat template refuses {place}: {error}") from error
  if len(messages) > 1:
    raise UserError(f"{place} has several messages, but the tokenizer has no chat template")
  return encode_with_bos(tokenizer, tokenizer.escape(messages[0]["content"]))
