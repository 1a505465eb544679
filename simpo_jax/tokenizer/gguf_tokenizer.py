"""The tokenizer of a GGUF file: its `tokenizer.ggml` fields, read as llama.cpp does.

Source: `llama_vocab::impl::load` and `tokenize` of llama.cpp's src/llama-vocab.cpp.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import gguf
import transformers
from tokenizers import Tokenizer

from simpo_jax.errors import UserError
from simpo_jax.models.gguf_header import TOKENIZER_MODEL, check_header
from simpo_jax.tokenizer.backends import Vocabulary, add_bos_and_eos, byte_level, sentence_piece
from simpo_jax.tokenizer.end_tokens import END_FIELDS, gguf_end_tokens
from simpo_jax.tokenizer.gguf_split import Split, split_named

_PREFIX = "tokenizer.ggml."
_TEMPLATE = "tokenizer.chat_template"
_SENTENCE_PIECE = "llama"  # in TOKENIZER_MODEL
# Where the file does not name them. (llama.cpp's for byte-level BPE, 11, is a token of text.)
_SENTENCE_PIECE_IDS = {"unknown_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_NONE = 2**32 - 1  # an id of no token
_NAMES = {
  "bos_token": "bos_token_id",
  "eos_token": "eos_token_id",
  "unk_token": "unknown_token_id",
  "pad_token": "padding_token_id",
}
_ROLES = (*_NAMES.values(), *END_FIELDS)


class GgufTokenizer(NamedTuple):
  """What a GGUF file says of its tokenizer.

  Attributes:
    hf: as transformers knows it, to be saved beside an export.
    ends: ids at which llama.cpp ends an answer.
  """

  hf: transformers.PreTrainedTokenizerFast
  ends: list[int]


def gguf_tokenizer(path: pathlib.Path) -> GgufTokenizer:
  """Reads the tokenizer of a GGUF file.

  Raises:
    UserError: the vocabulary's kind or its pre-tokenization is missing or unknown, or its fields
      contradict each other.
    ValueError, OSError: the file is damaged. A field of a wrong type raises other errors.
  """
  names = check_header(path)
  split = split_named(path, names)
  fields = _fields(path)
  if split is None:
    _check_sentence_piece(path, names.get(TOKENIZER_MODEL), fields)
  tokens = [token or f"[EMPTY_{i}]" for i, token in enumerate(fields["tokens"])]
  ids = _special_ids(path, fields, len(tokens), {} if split else _SENTENCE_PIECE_IDS)
  ends = gguf_end_tokens(ids, tokens)
  backend = _backend(path, fields, tokens, ends, split)
  special = {name: tokens[ids[key]] for name, key in _NAMES.items() if key in ids}
  begins, closes = _begins_and_closes(path, fields, special, split)
  add_bos_and_eos(
    backend,
    special["bos_token"] if begins else None,
    special["eos_token"] if closes else None,
  )
  template = fields.get(_TEMPLATE)
  if tools := fields.get(f"{_TEMPLATE}.tool_use"):
    template = {"default": template, "tool_use": tools}
  hf = transformers.PreTrainedTokenizerFast(
    tokenizer_object=backend,
    chat_template=template,
    model_input_names=["input_ids", "attention_mask"],
    clean_up_tokenization_spaces=False,
    **special,
  )
  return GgufTokenizer(hf, ends)


def _fields(path: pathlib.Path) -> dict[str, Any]:
  """The tokenizer's fields, those of `tokenizer.ggml` without this prefix."""
  fields = gguf.GGUFReader(path).fields
  return {
    name.removeprefix(_PREFIX): field.contents()
    for name, field in fields.items()
    if name.startswith("tokenizer.")
  }


def _check_sentence_piece(path: pathlib.Path, kind: str | None, fields: Mapping[str, Any]) -> None:
  if kind != _SENTENCE_PIECE:
    raise UserError(
      f"{path} has a vocabulary of the kind {TOKENIZER_MODEL}={kind!r}, which is not supported "
      f"('gpt2' and {_SENTENCE_PIECE!r} are); use the model's own folder of safetensors"
    )
  if "scores" not in fields:
    raise UserError(
      f"{path} has no {_PREFIX}scores, which say how text becomes tokens; take another conversion, "
      "or the model's own folder of safetensors"
    )
  if fields.get("remove_extra_whitespaces"):
    # llama.cpp ignores it in vocabularies of this kind; SentencePiece itself does not.
    raise UserError(
      f"{path} says {_PREFIX}remove_extra_whitespaces, which is not supported; use the model's own "
      "folder of safetensors"
    )


def _special_ids(
  path: pathlib.Path, fields: Mapping[str, Any], size: int, defaults: Mapping[str, int]
) -> dict[str, int]:
  """{field: id} of all tokens that have a role."""
  found = {name: fields[name] for name in _ROLES if fields.get(name, _NONE) != _NONE}
  for name, value in found.items():
    if type(value) is not int or not 0 <= value < size:
      raise UserError(
        f"{path} says {_PREFIX}{name}={value!r}, but has {size} tokens; correct it with "
        f"`gguf-set-metadata FILE {_PREFIX}{name} ID`"
      )
  return {**{name: i for name, i in defaults.items() if i < size}, **found}


def _backend(
  path: pathlib.Path,
  fields: Mapping[str, Any],
  tokens: Sequence[str],
  ends: Sequence[int],
  split: Split | None,
) -> Tokenizer:
  of, kinds = gguf.TokenType, fields.get("token_type") or [gguf.TokenType.NORMAL] * len(tokens)
  if len(kinds) != len(tokens):
    raise UserError(f"{path} has {len(tokens)} tokens and {len(kinds)} types of them; get it again")
  # A conversion may take an end token for a part of text; llama.cpp corrects it.
  special = [i for i, kind in enumerate(kinds) if kind in (of.UNKNOWN, of.CONTROL) or i in ends]
  whole = [i for i, kind in enumerate(kinds) if kind == of.USER_DEFINED and i not in ends]
  vocab = Vocabulary(str(path), tokens, special, whole)
  if split:
    return byte_level(vocab, fields["merges"], split)
  return sentence_piece(vocab, fields["scores"], bool(fields.get("add_space_prefix", True)))


def _begins_and_closes(
  path: pathlib.Path, fields: Mapping[str, Any], special: Mapping[str, str], split: Split | None
) -> tuple[bool, bool]:
  """Whether plain text gets a BOS and an EOS."""
  for name in ("bos", "eos"):
    if fields.get(f"add_{name}_token") and f"{name}_token" not in special:
      raise UserError(
        f"{path} says {_PREFIX}add_{name}_token, but names no {_PREFIX}{name}_token_id; add it "
        f"with `gguf-new-metadata --special-token-by-id {name} ID OLD NEW`"
      )
  begins = fields.get("add_bos_token", split.bos if split else True) and "bos_token" in special
  return bool(begins), bool(fields.get("add_eos_token"))
