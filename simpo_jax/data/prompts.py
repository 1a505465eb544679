"""The prompts to generate from, tokenised and checked before anything runs."""

import json
import string
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from simpo_jax.data.forms import Message, SkipRow, to_messages
from simpo_jax.data.sources import find_file, open_lines
from simpo_jax.data.tokenizer import TemplateFailed, Tokenizer, encode_with_bos
from simpo_jax.errors import UserError


class Prompt(NamedTuple):
  """One request. text: what the user wrote last, for display."""

  index: int
  text: str
  tokens: np.ndarray  # int32[T], one BOS at most, ending where the answer begins


def load_prompts(generate: ConfigDict, tokenizer: Tokenizer) -> list[Prompt]:
  """The prompts of the section `generate` of the config, numbered from 0.

  Raises:
    UserError: there is none, one is empty, malformed or longer than
      `generate.max_prompt_length`, or the template of synthetic ones is wrong.
  """
  prompts = []
  for place, messages in _sources(generate):
    index = len(prompts)
    tokens = np.asarray(_encode(place, messages, tokenizer), np.int32)
    if not len(tokens):
      raise UserError(f"{place} is empty; give it some text")
    if len(tokens) > generate.max_prompt_length:
      raise UserError(
        f"prompt {index} ({place}) has {len(tokens)} tokens, more than"
        f" generate.max_prompt_length={generate.max_prompt_length}; raise that or shorten it"
      )
    prompts.append(Prompt(index, messages[-1]["content"], tokens))
  return prompts


def _sources(generate: ConfigDict) -> Iterator[tuple[str, tuple[Message, ...]]]:
  """Yields (where it stands, messages)."""
  if generate.prompt_list:
    texts = generate.prompt_list
    for i, text in enumerate((texts,) if isinstance(texts, str) else texts):
      yield f"generate.prompt_list[{i}]", _user(text, f"generate.prompt_list[{i}]")
  elif generate.prompts == "synthetic":
    yield from _synthetic(generate.template, generate.count)
  else:
    yield from _from_file(generate.prompts, generate.count)


def _synthetic(template: str, count: int) -> Iterator[tuple[str, tuple[Message, ...]]]:
  if count < 1:
    raise UserError(f"generate.count={count} must be at least 1 for synthetic prompts")
  try:
    fields = {name for _, name, _, _ in string.Formatter().parse(template) if name is not None}
    if fields != {"index"}:
      raise ValueError
    texts = [template.format(index=i) for i in range(count)]
  except (ValueError, IndexError, KeyError) as error:
    raise UserError(
      f"generate.template {template!r} must have the field {{index}} and no other"
      " (write {{ and }} for braces)"
    ) from error
  for i, text in enumerate(texts):
    yield f"synthetic prompt {i}", _user(text, "generate.template")


def _from_file(path: str, count: int) -> Iterator[tuple[str, tuple[Message, ...]]]:
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
      yield place, _user(text, place) if name.endswith(".txt") else _from_json(text, place)
  except UnicodeDecodeError as error:
    raise UserError(f"{place} is not UTF-8 text; save the file as UTF-8") from error
  except OSError as error:
    raise UserError(f"{path} cannot be read ({error.strerror})") from error
  if not found:
    raise UserError(f"{path} has no prompts; write one per line")


def _from_json(text: str, place: str) -> tuple[Message, ...]:
  try:
    row = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise UserError(f"{place} is not valid JSON; write one object per line") from error
  if isinstance(row, dict):
    row = row.get("messages", row.get("prompt"))
    if isinstance(row, str):
      return _user(row, place)
  if not isinstance(row, list):
    raise UserError(f'{place} needs {{"messages": [...]}}, {{"prompt": ...}} or a list of messages')
  try:
    messages = to_messages(row)
  except SkipRow as error:
    raise UserError(f"{place} is not a conversation ({error.reason})") from error
  if not messages or messages[-1]["role"] != "user":
    raise UserError(f"{place} must end with a message by the user")
  _user(messages[-1]["content"], place)
  return messages


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
