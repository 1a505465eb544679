"""How text is cut before a GGUF's merges are applied: by the name in `tokenizer.ggml.pre`.

A GGUF does not carry the split that its vocabulary was learned with, only llama.cpp's name for it.
Another split gives other ids, which decode to the same text: nothing but this name tells.
"""

import pathlib
from typing import Any, NamedTuple

from simpo_jax.errors import UserError
from simpo_jax.models.gguf_header import TOKENIZER_MODEL, TOKENIZER_SPLIT

_BYTE_LEVEL = "gpt2"  # of TOKENIZER_MODEL: BPE over bytes; SentencePiece's need no split


class Split(NamedTuple):
  """A way to cut text.

  Attributes:
    patterns: each cuts what those before it left, and isolates what it matches.
    whole_first: a piece that is in the vocabulary is one token, whatever merges would make of it.
    composed: text is brought to NFC before.
  """

  patterns: tuple[str, ...]
  whole_first: bool = False
  composed: bool = False


_DIGIT = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

# What later patterns share: contractions in either case, a word with the one sign before it, signs
# with the ends of their line, and blanks.
_SHORT = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = rf"{_SHORT}|{_BEFORE}\p{{L}}+|\p{{N}}{{1,3}}|{_SIGNS}|{_BLANKS}"
_QWEN2 = rf"{_SHORT}|{_BEFORE}\p{{L}}+|\p{{N}}|{_SIGNS}|{_BLANKS}"

# Words end where capitals begin; marks belong to letters; paths keep their slashes.
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
  rf"{_BEFORE}{_UPPER}*{_LOWER}+|{_BEFORE}{_UPPER}+{_LOWER}*"
  rf"|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}"
)

# Where it is known to differ from llama.cpp's, this is the rule that models were trained with:
# its `tekken` knows no capitals but ASCII's, and no marks; its `qwen2` does not compose.
_GPT2_SPLIT = Split((_GPT2,))
_DIGITS_SPLIT = Split((_DIGIT, _GPT2))
_LLAMA3_SPLIT = Split((_LLAMA3,), whole_first=True)
_QWEN2_SPLIT = Split((_QWEN2,))
SPLITS = {
  # llama.cpp's own, of files whose converter knew no better; no model was trained with it.
  "default": Split((r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
  **dict.fromkeys(("gpt-2", "a.x-4.0", "mellum", "trillion"), _GPT2_SPLIT),
  **dict.fromkeys(("smollm", "refact", "starcoder", "minerva-7b"), _DIGITS_SPLIT),
  **dict.fromkeys(
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0"), _LLAMA3_SPLIT
  ),
  **dict.fromkeys(("smaug-bpe", "dbrx"), Split((_LLAMA3,))),
  "qwen2": _QWEN2_SPLIT._replace(composed=True),
  **dict.fromkeys(("deepseek-r1-qwen", "megrez", "kormo", "f2llmv2"), _QWEN2_SPLIT),
  "tekken": Split((_TEKKEN,), whole_first=True),
}


def split_named(path: pathlib.Path, names: dict[str, str]) -> Split | None:
  """The split of a GGUF; None: its vocabulary is of a kind that needs none.

  Args:
    path: of the file, for messages.
    names: what its header says of them; see `gguf_header.check_header`.

  Raises:
    UserError: the file names no split, or one that is not known here.
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


def apply_split(hf: Any, split: Split) -> None:
  """Makes a transformers tokenizer of a GGUF split text so; its ids stay."""
  from tokenizers import Regex, normalizers, pre_tokenizers

  backend = hf.backend_tokenizer
  backend.pre_tokenizer = pre_tokenizers.Sequence(
    [
      *(pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in split.patterns),
      pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ]
  )
  backend.normalizer = normalizers.NFC() if split.composed else None
  backend.model.ignore_merges = split.whole_first
