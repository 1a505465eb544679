"""Pre-tokenization of GGUF models: the regexes that split text before BPE merges.

A GGUF file does not store these regexes, only llama.cpp's name for them in `tokenizer.ggml.pre`.
With the wrong ones, text gets different ids that decode to the same text, so that the error would
go unnoticed.
"""

import pathlib
from typing import NamedTuple

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers

from simpo_jax.errors import UserError
from simpo_jax.models.gguf_header import TOKENIZER_MODEL, TOKENIZER_SPLIT

_BYTE_LEVEL = "gpt2"  # byte-level BPE; SentencePiece models need no pre-tokenization


class Split(NamedTuple):
  """One pre-tokenization.

  Attributes:
    patterns: regexes applied in order, each to the pieces that the previous ones left; a match
      becomes a piece ("isolated" in tokenizers).
    ignore_merges: a piece that is in the vocabulary becomes one token without applying merges.
    nfc: text is normalized to NFC first.
    bos: sequences begin with BOS where the file does not say whether they do.
  """

  patterns: tuple[str, ...]
  ignore_merges: bool = False
  nfc: bool = False
  bos: bool = False


_DIGIT = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# Common parts of later patterns: case-insensitive contractions, an optional character before a
# word, punctuation with the line breaks after it, and whitespace.
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_PREFIX = r"[^\r\n\p{L}\p{N}]?"
_PUNCTUATION = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_WHITESPACE = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_CONTRACTIONS}|{_PREFIX}\p{{L}}+|\p{{N}}{{1,3}}|{_PUNCTUATION}|{_WHITESPACE}"
_QWEN2 = rf"{_CONTRACTIONS}|{_PREFIX}\p{{L}}+|\p{{N}}|{_PUNCTUATION}|{_WHITESPACE}"

# Words also split before capitals, combining marks count as letters, and slashes as punctuation.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
  rf"{_PREFIX}{_UPPER}*{_LOWER}+|{_PREFIX}{_UPPER}+{_LOWER}*"
  rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_WHITESPACE}"
)

# Where llama.cpp is known to differ, these are the regexes that the models were trained with:
# llama.cpp's `tekken` ignores non-ASCII capitals and marks, and its `qwen2` does not apply NFC.
_GPT2_SPLIT = Split((_GPT2,))
_DIGITS_SPLIT = Split((_DIGIT, _GPT2))
_LLAMA3_SPLIT = Split((_LLAMA3,), ignore_merges=True, bos=True)
_QWEN2_SPLIT = Split((_QWEN2,))
SPLITS = {
  # llama.cpp's fallback, written by converters that did not know the model.
  "default": Split((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
  **dict.fromkeys(("gpt-2", "a.x-4.0", "mellum", "trillion"), _GPT2_SPLIT),
  **dict.fromkeys(("smollm", "refact", "starcoder", "minerva-7b"), _DIGITS_SPLIT),
  **dict.fromkeys(
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"), _LLAMA3_SPLIT
  ),
  **dict.fromkeys(("smaug-bpe", "dbrx"), Split((_LLAMA3,))),
  "qwen2": _QWEN2_SPLIT._replace(nfc=True),
  **dict.fromkeys(("deepseek-r1-qwen", "megrez", "kormo", "f2llmv2"), _QWEN2_SPLIT),
  "tekken": Split((_TEKKEN,), ignore_merges=True, bos=True),
}


def split_named(path: pathlib.Path, names: dict[str, str]) -> Split | None:
  """Returns the pre-tokenization of a GGUF, or None if its kind of vocabulary needs none.

  Args:
    path: the file, for error messages.
    names: {TOKENIZER_MODEL: ..., TOKENIZER_SPLIT: ...}, from `gguf_header.check_header`.

  Raises:
    UserError: the file does not name its pre-tokenization, or the name is not in `SPLITS`.
  """
  if names.get(TOKENIZER_MODEL) != _BYTE_LEVEL:
    return None
  name = names.get(TOKENIZER_SPLIT)
  if name in SPLITS:
    return SPLITS[name]
  known = ", ".join(SPLITS)
  if name is None:
    raise UserError(
      f"{path} has no {TOKENIZER_SPLIT}, so how its model splits text is not known: its converter "
      "was older than this field. Take a newer GGUF, or the model's own folder of safetensors; or "
      "name it: `gguf-new-metadata --pre-tokenizer=NAME OLD NEW`, where NAME "
      f"is one of {known}"
    )
  raise UserError(
    f"{path} splits text by {TOKENIZER_SPLIT}={name!r}, which is not known here; use the model's "
    f"own folder of safetensors. Known are {known}"
  )


def apply_split(backend: Tokenizer, split: Split) -> None:
  """Gives a byte-level BPE this split's pre-tokenizer, normalizer and use of merges."""
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  backend.normalizer = normalizers.NFC() if split.nfc else None
  backend.model.ignore_merges = split.ignore_merges
