"""Small GGUF files whose `tokenizer.ggml` fields are given, and texts that they differ on.

tests/tokenizer/gguf_fields_test.py reads them, and tests/support/make_gguf_fields.py, with nothing
of simpo_jax.
"""

import math
import struct
from typing import Any

from support.split_texts import HARD, spelling, vocabulary
from support.tiny_model_files import F32, FIELDS, TENSORS, D, gguf_header

_PREFIX = "tokenizer.ggml."
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6  # in token_type
_BLANK = "\u2581"
_PIECES = (
  "th", "he", "in", "er", "an", "re", "on", "at", "en", "ou", "the", "ing", "and", "ent", "ion",
  "aa", "aaa", "aaaa", "==", "====", "12", "123", "00", "2024", "'s", "ll", "can", "'t", "\n\n",
  "é", "ß", "он", "ни", "你好", "ा", "def", "return", "ст",
)  # fmt: skip
_LEADS = ("", "t", "the", "a", "an", "i", "in", "s", "w", "1", "x", "(", "=", "def", "П", "你")
# Of DeepSeek's models: no byte-level vocabulary can spell them.
DEEPSEEK = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>")
# All that llama.cpp takes for an end, and some that it does not.
ENDS = (
  "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
  "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
  "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", DEEPSEEK[1], "[e~[",
  "<|im_start|>", "<|fim_prefix|>", "<|END_OF_TURN_TOKEN|>", "<|eot|>", "<|end_of_turn|>", "<pad>",
)  # fmt: skip
# Of models that fill in the middle; of two of a row, which one llama.cpp takes is not defined.
FILLS = (
  ("<|fim_pad|>", "<|fim_repo|>", "<|file_sep|>"),
  ("<fim-pad>", "<|repo_name|>"),
  ("<fim_pad>", "<fim-repo>"),
  ("<PAD>", "<REPO>"),
  ("[PAD]", "<reponame>"),
)


def texts() -> tuple[str, ...]:
  """Texts with special tokens and without."""
  specials = (
    "<s>a", "<s> a", "</s>\na", "a</s> b</s>", "x <USER>y<USER> z", "<unk> the", "<s></s>",
    "<|im_end|>the", "the<|im_end|> the\n<|im_end|>", "aaaaaaaaa", "   the   the", "",
    *(f"{a}the {b}" for a in DEEPSEEK for b in ("", "the", DEEPSEEK[1])),
  )  # fmt: skip
  return *HARD, *specials


def sentence_pieces() -> dict[str, Any]:
  """Fields of a SentencePiece vocabulary; its merges are those of score."""
  chars = dict.fromkeys([*map(chr, range(33, 127)), *"éßониПрветсыдлх你好世界年नमसतेा😀\n", _BLANK])
  pieces = dict.fromkeys([*(_BLANK * 2**i for i in range(1, 5)), *_PIECES])
  leads = [_BLANK + lead for lead in _LEADS if lead]
  scored = [t for t in (*pieces, *leads, "▁ing", "wi", "▁wi") if t not in chars]
  special = ["<unk>", "<s>", "</s>"]
  names = [f"<0x{i:02X}>" for i in range(256)]
  late = ["<USER>", "<|im_end|>"]
  tokens = [*special, *names, *scored, *chars, *late]
  kinds = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * (len(scored) + len(chars))
  scores = [0.0] * 259 + [-float(i) for i in range(len(scored) + len(chars))] + [0.0, 0.0]
  return {
    "model": "llama",
    "pre": "default",
    "tokens": tokens,
    "token_type": [*kinds, USER, CONTROL],
    "scores": scores,
    "merges": None,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "unknown_token_id": 0,
  }


def byte_pieces(name: str = "gpt-2", special: tuple[str, ...] = ()) -> dict[str, Any]:
  """Fields of a byte-level vocabulary with special tokens at its end."""
  tokens, merges = vocabulary()
  return {
    "model": "gpt2",
    "pre": name,
    "tokens": [*tokens, *special],
    "token_type": [CONTROL] * 2 + [NORMAL] * (len(tokens) - 2) + [CONTROL] * len(special),
    "merges": [" ".join(pair) for pair in merges],
    "bos_token_id": 0,
    "eos_token_id": 1,
  }


def ends(special: tuple[str, ...]) -> dict[str, Any]:
  """Fields of a vocabulary of bytes and special tokens; of these, `</s>` is stated as the end."""
  tokens = ["<s>", *spelling(), "ab", *special]
  return {
    "model": "gpt2",
    "pre": "gpt-2",
    "tokens": tokens,
    "token_type": [CONTROL] + [NORMAL] * 257 + [CONTROL] * len(special),
    "merges": ["a b"],
    "bos_token_id": 0,
    "eos_token_id": tokens.index("</s>"),
  }


# Name: fields. In every one, ids of `texts` and ids that end an answer are compared.
CASES: dict[str, dict[str, Any]] = {
  "spm": sentence_pieces(),
  "spm without a prefix": {**sentence_pieces(), "add_space_prefix": False},
  "spm without BOS": {**sentence_pieces(), "add_bos_token": False, "add_space_prefix": True},
  "spm that names no ids": {
    **sentence_pieces(),
    **dict.fromkeys(("bos_token_id", "eos_token_id", "unknown_token_id")),
  },
  "bpe": byte_pieces(),
  "bpe with BOS": {**byte_pieces(), "add_bos_token": True},
  "llama-bpe": byte_pieces("llama-bpe"),
  "llama-bpe without BOS": {**byte_pieces("llama-bpe"), "add_bos_token": False},
  "deepseek": {**byte_pieces("deepseek-r1-qwen", DEEPSEEK), "add_bos_token": True},
  "stated ends": {
    **byte_pieces("gpt-2", ("<A>", "<B>", "<C>", "<D>", "<E>", "<F>")),
    "eot_token_id": -6,
    "eom_token_id": -5,
    "fim_pad_token_id": -4,
    "fim_rep_token_id": -3,
    "fim_sep_token_id": -2,
    "fim_mid_token_id": -1,
  },
  "an end of the kind normal": {
    **byte_pieces("gpt-2", ("<|im_end|>",)),
    "token_type": [*byte_pieces()["token_type"], NORMAL],
  },
}
CASES["all ends"] = ends(ENDS)
for _absent in (  # so that <|end|> is one or is none
  ("<|return|>",), ("<|calls|>",), ("<|call|>", "<|flush|>"), ("<|call|>", "<|calls|>"),
  ("<|return|>", "<|flush|>"),
):  # fmt: skip
  CASES[f"all ends but {_absent}"] = ends(tuple(t for t in ENDS if t not in _absent))
CASES |= {f"fills {names[0]}": ends(("</s>", *names)) for names in FILLS}
_LAYOUTS = {str: "s", bool: "?", int: "I"}


def gguf_of(fields: dict[str, Any]) -> bytes:
  """A whole llama of a vocabulary, whose weights are zeros; negative ids count from its end."""
  size = len(fields["tokens"])
  known: dict[str, Any] = {name: (layout, value) for name, layout, value in FIELDS}
  for name, value in fields.items():
    full = _PREFIX + name if not name.startswith("tokenizer.") else name
    layout = known.get(full, (None, None))[0] or _layout(value)
    value = value + size if name.endswith("_id") and value is not None and value < 0 else value
    known[full] = (layout, value)
  listed = [(name, layout, value) for name, (layout, value) in known.items() if value is not None]
  tensors = [
    (name, (D, size) if name == "token_embd.weight" else shape, F32) for name, shape, _ in TENSORS
  ]
  header, _ = gguf_header(listed, tensors)
  start = b"".join(v if k == "s" else struct.pack("<" + k, v) for k, v in header)
  return start + bytes(-len(start) % 32 + sum(4 * math.prod(shape) for _, shape, _ in tensors))


def _layout(value: Any) -> str:
  if isinstance(value, list):
    return "[f" if isinstance(value[0], float) else "[s"
  return _LAYOUTS.get(type(value), "I")
