"""End tokens: those of the tokenizer, of the model's configs or GGUF, and of the chat template."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from simpo_jax.errors import UserError, first_line, shown

# Tokens that end a turn in well-known templates, often different from `eos_token`.
_TURN_ENDS = (
  "<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<turn|>", "<|end|>",
  "<|END_OF_TURN_TOKEN|>", "<|end_of_turn|>", "<|endoftext|>", "</s>", "<|eot|>",
)  # fmt: skip

# What llama.cpp takes for an end in every vocabulary, besides the ids that a GGUF states.
_GGUF_ENDS = (
  "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
  "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
  "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>",
  "<\uff5cend\u2581of\u2581sentence\uff5c>", "[e~[",
)  # fmt: skip
# Of models that fill in the middle; by name where the GGUF does not state their ids.
_GGUF_FILLS = {
  "fim_pad_token_id": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"),
  "fim_rep_token_id": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
  "fim_sep_token_id": ("<|file_sep|>",),
}
# Where there is one of each, <|end|> ends a part of an answer.
_GGUF_PARTS = ({"<|return|>", "<|flush|>"}, {"<|call|>", "<|calls|>"})
_GGUF_STATED = ("eos_token_id", "eot_token_id", "eom_token_id")
END_FIELDS = (*_GGUF_STATED, *_GGUF_FILLS)


class Declared(NamedTuple):
  """End tokens that a model's files state besides the tokenizer's own.

  Attributes:
    ids: all of them.
    earlier: those that the first versions of simpo_jax read.
  """

  ids: list[int]
  earlier: list[int]


def end_tokens(
  eos_id: int | None, declared: Sequence[int], template: str, vocab: Mapping[str, int]
) -> tuple[int, ...]:
  """Returns the ids of all end tokens without duplicates, the tokenizer's EOS first.

  Args:
    eos_id: `eos_token_id` of the tokenizer.
    declared: ids of the model's files; see `folder_end_tokens` and `gguf_end_tokens`.
    template: the chat template, which is searched for known end-of-turn tokens.
    vocab: {token: id}.
  """
  turn_ends = [vocab[t] for t in _turn_ends(template) if t in vocab]
  return tuple(dict.fromkeys([*([] if eos_id is None else [eos_id]), *declared, *turn_ends]))


def turn_end(eos_id: int, template: str, vocab: Mapping[str, int]) -> int:
  """Returns the id that ends a turn of the chat template: its own, else the tokenizer's EOS."""
  return next((vocab[t] for t in _turn_ends(template) if t in vocab), eos_id)


def folder_end_tokens(folder: pathlib.Path) -> Declared:
  """Returns the `eos_token_id`s of generation_config.json, or of config.json where it has none.

  Raises:
    UserError: a file is not readable JSON, or the value is not an id or a list of ids.
  """
  found = _eos_of(folder / "generation_config.json")
  if found:
    return Declared(found, found)
  return Declared(_eos_of(folder / "config.json"), [])


def _eos_of(path: pathlib.Path) -> list[int]:
  if not path.is_file():
    return []
  try:
    config = json.loads(path.read_text())
    eos = config.get("eos_token_id")
    nested = config.get("text_config")
    if eos is None and isinstance(nested, dict):
      eos = nested.get("eos_token_id")
  except (OSError, ValueError, AttributeError, RecursionError) as error:
    raise UserError(f"{path} is not readable JSON ({first_line(error)})") from error
  ids = eos if isinstance(eos, list) else [] if eos is None else [eos]
  if not all(type(i) is int and -1 <= i < 2**31 for i in ids):
    raise UserError(
      f"{path} says eos_token_id={shown(eos)}, which is neither an id nor a list of ids; correct it"
    )
  return [i for i in ids if i != -1]  # -1: there is none


def check_ends(ids: Sequence[int], vocab_size: int, origin: str) -> None:
  """Raises a UserError if an end token is outside the vocabulary, so that it would never come."""
  if beyond := [i for i in ids if i >= vocab_size]:
    raise UserError(
      f"the end token {beyond[0]} of {origin} is beyond its vocabulary of {vocab_size} tokens; "
      "correct eos_token_id in its generation_config.json (without that file, in config.json)"
    )


def gguf_end_tokens(ids: Mapping[str, int], tokens: Sequence[str]) -> list[int]:
  """Returns the ids at which llama.cpp ends an answer.

  Source: `special_eog_ids` in llama.cpp's src/llama-vocab.cpp.

  Args:
    ids: {field: id} of the GGUF's `tokenizer.ggml` fields, such as "eot_token_id".
    tokens: the vocabulary.
  """
  vocab = {token: i for i, token in enumerate(tokens)}
  stated = [ids[field] for field in _GGUF_STATED if field in ids]
  found = dict.fromkeys([*stated, *(vocab[t] for t in _GGUF_ENDS if t in vocab)])
  for field, names in _GGUF_FILLS.items():
    fill = ids.get(field, next((vocab[t] for t in names if t in vocab), None))
    found |= {} if fill is None else {fill: None}
  if all(tokens_of & vocab.keys() for tokens_of in _GGUF_PARTS):
    found.pop(vocab.get("<|end|>", -1), None)
  return list(found)


def _turn_ends(template: str) -> list[str]:
  # In a template with channels (gpt-oss), <|end|> ends one message of a turn, not the turn.
  channels = "<|channel|>" in template
  return [t for t in _TURN_ENDS if t in template and not (channels and t == "<|end|>")]
