"""The prompts to generate from, tokenised and checked before anything runs."""

import json
import re
import string
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from simpo_jax.config_check import range_problem
from simpo_jax.data.forms import Message, SkipRow, to_messages
from simpo_jax.data.sources import find_file, open_lines
from simpo_jax.data.tokenizer import TemplateFailed, Tokenizer, encode_with_bos
from simpo_jax.errors import UserError, shown


class Prompt(NamedTuple):
  """One prompt. text: what the user wrote last, for display."""

  index: int
  text: str
  tokens: np.ndarray  # int32[T], one BOS at most, ending where the answer begins
  settings: Mapping[str, float] = MappingProxyType({})  # its own, in place of the config's


_WIDE = re.compile(r"\d{3,}|{")  # of a field in the template: a width above 99, or one to come
# Fields of `config.generate` that a row of a .jsonl file may set for its own prompt.
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")


def load_prompts(generate: ConfigDict, tokenizer: Tokenizer) -> list[Prompt]:
  """The prompts of the section `generate` of the config, numbered from 0.

  Raises:
    UserError: there is none, one is empty, malformed or longer than
      `generate.max_prompt_length`, or the template of synthetic ones is wrong.
  """
  prompts = []
  for place, messages, settings in _sources(generate):
    index = len(prompts)
    tokens = np.asarray(_encode(place, messages, tokenizer), np.int32)
    if not len(tokens):
      raise UserError(f"{place} is empty; give it some text")
    if len(tokens) > generate.max_prompt_length:
      raise UserError(
        f"prompt {index} ({place}) has {len(tokens)} tokens, more than"
        f" generate.max_prompt_length={generate.max_prompt_length}; raise that or shorten it"
      )
    prompts.append(Prompt(index, messages[-1]["content"], tokens, settings))
  return prompts


_Source = tuple[str, tuple[Message, ...], dict[str, float]]


def _sources(generate: ConfigDict) -> Iterator[_Source]:
  """Yields (where it stands, messages, settings of its own)."""
  if generate.prompt_list:
    texts = generate.prompt_list
    for i, text in enumerate((texts,) if isinstance(texts, str) else texts):
      yield f"generate.prompt_list[{i}]", _user(text, f"generate.prompt_list[{i}]"), {}
  elif generate.prompts == "synthetic":
    yield from _synthetic(generate.template, generate.count)
  else:
    yield from _from_file(generate.prompts, generate.count)


def _synthetic(template: str, count: int) -> Iterator[_Source]:
  if count < 1:
    raise UserError(f"generate.count={count} must be at least 1 for synthetic prompts")
  try:
    fields = [f[1:3] for f in string.Formatter().parse(template) if f[1] is not None]
    if {name for name, _ in fields} != {"index"} or any(_WIDE.search(how) for _, how in fields):
      raise ValueError
    texts = [template.format(index=i) for i in range(count)]
  except (ValueError, LookupError, OverflowError) as error:
    raise UserError(
      f"generate.template {shown(template)!r} must have the field {{index}} and no other"
      " (write {{ and }} for braces), and no width above 99"
    ) from error
  for i, text in enumerate(texts):
    yield f"synthetic prompt {i}", _user(text, "generate.template"), {}


def _from_file(path: str, count: int) -> Iterator[_Source]:
  if count < 0:
    raise UserError(f"generate.count={count} must be 0 (all) or positive")
  file = find_file(path)
  name = file.name.lower()
  if not name.endswith((".txt", ".jsonl")):
    raise UserError(
      f"generate.prompts={path} must be synthetic, a .txt file (one prompt per line) or a"
      " .jsonl file of messages"
    )
  found = 0
  try:
    for number, line in open_lines(file):
      if count and found == count:
        return
      found += 1
      place = f"{file.name}:{number}"
      text = line.decode("utf-8").strip()
      if name.endswith(".txt"):
        yield place, _user(text, place), {}
      else:
        yield place, *_from_json(text, place)
  except UnicodeDecodeError as error:
    raise UserError(f"{place} is not UTF-8 text; save the file as UTF-8") from error
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror})") from error
  if not found:
    raise UserError(f"{path} has no prompts; write one per line")


def _from_json(text: str, place: str) -> tuple[tuple[Message, ...], dict[str, float]]:
  try:
    row = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(f"{place} is not valid JSON; write one object per line") from error
  settings = {}
  if isinstance(row, dict):
    settings = {name: _setting(name, row[name], place) for name in SETTINGS if name in row}
    row = row.get("messages", row.get("prompt"))
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
  if problem := range_problem(f"generate.{name}", value):
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


def _encode(place: str, messages: tuple[Message, ...], tokenizer: Tokenizer) -> list[int]:
  if tokenizer.chat_template is not None:
    try:
      return encode_with_bos(tokenizer, tokenizer.render(messages, True))
    except TemplateFailed as error:
      raise UserError(f"the chat template refuses {place}: {error}") from error
  if len(messages) > 1:
    raise UserError(f"{place} has several messages, but the tokenizer has no chat template")
  return encode_with_bos(tokenizer, tokenizer.escape(messages[0]["content"]))
