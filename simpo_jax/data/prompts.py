"""Loads, tokenizes and validates the prompts for generation."""

import difflib
import itertools
import json
import re
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from simpo_jax.config_check import range_problem
from simpo_jax.data.readers.compressed import PROMPTS
from simpo_jax.data.rendering import render_prompt, unshown
from simpo_jax.data.row_files import Malformed
from simpo_jax.data.rows.fields import FIELDS, parse_columns
from simpo_jax.data.rows.formats import Conversation, check_prompt, to_prompt
from simpo_jax.data.rows.reasons import REASONS, SkipRow
from simpo_jax.data.sources import Source, open_source, read_files
from simpo_jax.data.types import Message, Prompt
from simpo_jax.errors import UserError, shown
from simpo_jax.settings import FIELDS as SETTING_FIELDS
from simpo_jax.settings import GenerateSettings
from simpo_jax.tokenizer.chat_template import TemplateFailed
from simpo_jax.tokenizer.tokenizer import NoEmbedding, Tokenizer, encode_with_bos

_WIDE_FIELD = re.compile(r"\d{3,}|{")  # a format spec with a width above 99 or a nested field
# Fields of `config.generate` that a row may override for its prompt.
SETTINGS = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")
_FOR_ALL = (
  "seed",
  "stop",
  "ignore_eos",
  "num_samples",
  "logprobs",
  "min_new_tokens",
  "suppress_tokens",
  "strip_stop",
)  # fields that it may not
_NEAR = 0.8  # similarity of a misspelled setting to its name


class Prompts(NamedTuple):
  """The prompts of a run.

  Attributes:
    prompts: the usable ones; the others keep their numbers.
    skipped: a message for each prompt that is left out.
    notes: counts of facts that the user should know, each of which completes "N prompts ...".
    left_out: which files were not read, as a line.
  """

  prompts: list[Prompt]
  skipped: list[str]
  notes: dict[str, int]
  left_out: tuple[str, ...] = ()


class _Source(NamedTuple):
  """A prompt before it is read. row: a row of a file, or the text of a user's message."""

  origin: str
  row: dict[str, Any] | list[Any] | Malformed | str


def load_prompts(
  generate: GenerateSettings,
  tokenizer: Tokenizer,
  columns: Sequence[str] = (),
  skip_unusable: bool = False,
  check_columns: bool = False,
) -> Prompts:
  """Loads the prompts of the config section `generate`, numbered from 0.

  Args:
    columns: `data.columns`.
    skip_unusable: whether to leave out unusable prompts; else they are errors. With
      `generate.long_prompts`="skip", prompts that are too long are left out in any case.
    check_columns: whether the columns are meant for these prompts, so that each must be there.

  Raises:
    UserError: there are no prompts, or not the columns, one is empty, malformed or longer than
      `generate.max_prompt_length`, or the template of synthetic prompts is invalid.
  """
  mapping, source = parse_columns(columns), _open(generate)
  loaded = Prompts([], [], {}, source.left_out() if source else ())
  rows = _rows(source, generate.count, mapping, check_columns) if source else _texts(generate)
  for index, row in enumerate(rows):
    try:
      prompt, notes = _read_prompt(index, row, tokenizer)
      length, limit = len(prompt.tokens), generate.max_prompt_length
      if length <= limit:
        loaded.prompts.append(prompt)
        for note in dict.fromkeys(notes):
          loaded.notes[note] = loaded.notes.get(note, 0) + 1
        continue
      name = f"prompt {index} ({row.origin})"
      problem = (
        f"{name} has {length} tokens, more than generate.max_prompt_length={limit}; raise it"
      )
      if not skip_unusable and generate.long_prompts != "skip":
        raise UserError(f"{problem}, shorten it, or set generate.long_prompts=skip")
      loaded.skipped.append(f"{problem} or shorten it")
    except UserError as error:
      if not skip_unusable:
        raise
      loaded.skipped.append(str(error))
  if not loaded.prompts and loaded.skipped and not skip_unusable:
    raise UserError(f"no prompt can be used: {loaded.skipped[0]}")
  return loaded


def _read_prompt(
  index: int, source: _Source, tokenizer: Tokenizer
) -> tuple[Prompt, tuple[str, ...]]:
  conversation, settings = _conversation(source)
  try:
    check_prompt(conversation)
  except SkipRow as skip:
    raise UserError(f"{source.origin} is empty; give it some text") from skip
  tokens = encode_prompt(source.origin, conversation, tokenizer)
  if not tokens:
    raise UserError(f"{source.origin} is empty; give it some text")
  prompt, notes = conversation.prompt, conversation.notes
  texts = [prompt] if isinstance(prompt, str) else [m["content"] for m in reversed(prompt)]
  text = next((text for text in texts if text.strip()), "")
  if not isinstance(prompt, str):
    notes = (*notes, *unshown(conversation, tokenizer, [render_prompt(conversation, tokenizer)]))
  return Prompt(index, text, np.asarray(tokens, np.int32), settings), notes


def _conversation(source: _Source) -> tuple[Conversation, dict[str, float]]:
  """The conversation and the settings of a row."""
  origin, row = source
  if isinstance(row, Malformed):
    raise UserError(f"{origin} is not a row of prompts: {REASONS[row.reason]}")
  if isinstance(row, str):
    row = {"messages": [{"role": "user", "content": row}]}
  elif isinstance(row, list):
    row = {"messages": row}
  settings = _settings(row, origin)
  try:
    rest = {name: value for name, value in row.items() if name not in SETTINGS}
    return to_prompt(rest), settings
  except SkipRow as skip:
    if skip.reason == "missing_field":
      raise UserError(
        f"{origin} needs one of prompt, messages, conversations, question, instruction; "
        f"{skip.detail}; data.columns maps other names to them"
      ) from skip
    detail = f" ({skip.detail})" if skip.detail else ""
    raise UserError(f"{origin} is not a prompt: {REASONS[skip.reason]}{detail}") from skip


def _settings(row: dict[str, Any], origin: str) -> dict[str, float]:
  """The settings of a row; a misspelled one is an error."""
  for name in row:
    if name in _FOR_ALL and row[name] is not None:
      raise UserError(
        f"{origin}: {name} cannot be set for one prompt; set generate.{name} for all, or remove it"
      )
    near = difflib.get_close_matches(name, SETTINGS, 1, _NEAR)
    if name not in SETTINGS and near:
      raise UserError(f"{origin}: there is no setting {name}; did you mean {near[0]}?")
  # In a table, null means that the row does not set the column.
  given = {name: row[name] for name in SETTINGS if row.get(name) is not None}
  return {name: _check_setting(name, _number(value), origin) for name, value in given.items()}


def _number(value: Any) -> Any:
  """The number that a text is, as all values of a .csv file are; other values as they are."""
  try:
    number = float(value) if isinstance(value, str) else value
    # Spreadsheets and pandas write 40.0 for an integer.
    return int(number) if isinstance(value, str) and number.is_integer() else number
  except ValueError:
    return value


def _check_setting(name: str, value: Any, origin: str) -> float:
  integral = name in ("top_k", "max_new_tokens")
  if type(value) is not int and (integral or type(value) is not float):
    what = "a whole number" if integral else "a number"
    raise UserError(f"{origin}: {name} is {json.dumps(value, default=str)}, and must be {what}")
  if problem := range_problem(SETTING_FIELDS[f"generate.{name}"], value):
    raise UserError(f"{origin}: {name}={value} {problem}")
  return value


def encode_messages(origin: str, messages: list[Message], tokenizer: Tokenizer) -> list[int]:
  """Encodes messages up to the start of the answer; see `encode_prompt`."""
  return encode_prompt(origin, Conversation(tuple(messages)), tokenizer)


def encode_prompt(origin: str, conversation: Conversation, tokenizer: Tokenizer) -> list[int]:
  """Encodes a prompt up to the start of the answer; see `render_prompt`.

  Args:
    origin: where the conversation comes from, for error messages.

  Raises:
    UserError: the template rejects it, several messages have no template, or the model's embedding
      has no row for a token.
  """
  try:
    return encode_with_bos(tokenizer, render_prompt(conversation, tokenizer))
  except TemplateFailed as error:
    raise UserError(f"the chat template refuses {origin}: {error}") from error
  except NoEmbedding as error:
    raise UserError(f"{origin} cannot be encoded: {error}") from error


def _texts(generate: GenerateSettings) -> Iterator[_Source]:
  if generate.prompt_list:
    for i, text in enumerate(generate.prompt_list):
      yield _Source(f"generate.prompt_list[{i}]", text)
  else:
    yield from _synthetic(generate.template, generate.count)


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
  for text in texts:
    yield _Source("generate.template", text)


def _rows(source: Source, count: int, columns: Mapping[str, str], check: bool) -> Iterator[_Source]:
  fields = (*FIELDS, *SETTINGS, *_FOR_ALL)
  rows = read_files(source.name, source.files(), columns, fields, PROMPTS, check)
  return (_Source(*item) for item in itertools.islice(rows, count or None))


def _open(generate: GenerateSettings) -> Source | None:
  """The source of prompts that are not in the config itself."""
  if generate.prompt_list or generate.prompts == "synthetic":
    return None
  if generate.count < 0:
    raise UserError(f"generate.count={generate.count} must be 0 (all) or positive")
  return open_source(generate.prompts, PROMPTS)
