"""Texts that splits differ on, and a vocabulary in whose ids every split can be seen.

tests/tokenizer/gguf_split_test.py reads it, and tests/support/make_split_ids.py, with nothing of
simpo_jax.
"""

import hashlib
import itertools
import json
import math
import pathlib
import struct

from support.tiny_model_files import F32, FIELDS, TENSORS, D, gguf_header

HARD = (
  "1 12 123 1234 12345 123456 a1 a12b 1a\n2\n 3\n\n4\t5 x=10, 1,000.50 -7 3.14159 (2024) v2.0.1",
  "٣٤٥ ४५६ ⅫⅣ ½¾ x² ①② １２３４ 1²3",
  "I'm I'M we've We'Ve it's it'S 's 'S 're 'RE 'll 'LL 'd 'D 't 'T can't CAN'T 'sx x's' 'tis"
  " o'clock",
  "’s ’re it’s 'ſ 'ſt K'K",
  " lead", "  lead", "   three", "\tlead", "\t\tlead", "\n lead", "trail ", "trail  ", "trail\n",
  "trail\n\n", "trail \n", "trail\t", " ", "  ", "   ", "\n", "\n\n", " \n", "\n ", "\t", "\t\n\t",
  "a\r\nb\r\n\r\nc\rd\r\r\n", "a\n\n\n\n\nb", "a \n \n b", "a   b    c", "a  \t b", "a.\n\nb!\r\n",
  "a\u00a0b \u00a0c\u00a0 d\u00a0\u00a0e", "a\u3000b\u2003c\u200bd\u2028e\u0085f\u180eg\ufeffh",
  "Привет, Мир! Как дела? ёЁ 123рубля", "مرحبا بالعالم، كيف حالك؟ ١٢٣", "שלום עולם",
  "你好，世界！我想在2024年学习。", "こんにちは、カタカナ。ー々〆", "안녕하세요 세계",
  "नमस्ते दुनिया, कैसे हैं आप? क्षत्रिय", "สวัสดีชาวโลก กำลัง", "កាន់តែពិសេស", "வணக்கம்",
  "Ünïcödé Straße ÀÉÎ ŁÓDŹ Ǆ ǅ ǆ ﬁ ΑΒΓ αβγ",
  "e\u0301 n\u0303o A\u030a\u0301 \u0301x 1\u0301 q\u0323\u0307",
  "😀 👍🏽 👨‍👩‍👧‍👦 🏳️‍🌈 🇩🇪x a😀b 1️⃣ ❤️",
  "camelCase HTMLParser XMLHttpRequest iPhone McDonald USA USAs aB Ab ABc abC Éa éA",
  "...!!! ??? -- --- ### $$$ <<>> ++== ^^^ ~~~ ||| ``` **bold** _it_ \"q\" (p) [b] {c} a.b,c;d:e",
  "/usr/bin/env http://a.b/c?d=e&f=%20#g x/\n/y//\n", "C:\\dir\\n", "$5 €6 £7 +1 =2 <3 >4 ^5 ~6 |7",
  "def f(x):\n    if x > 10:\n\t\treturn x**2  # no\n\n\nclass A:\n  pass\n",
  "{\"a\": [1, 22, 333], \"b\": null}\n", "the and with the\nthe  the the", "qzx xzq qzxqzx",
  "\u0000\u0001\u007f\u0080\u00ad\ue000\U0010fffd", "𝐀𝐁𝐜 𐐀𐐨 Ⓐⓐ ʰˢ ªº ㋀ ℵ",
  "x" * 40 + "9" * 40 + " " * 40,
)  # fmt: skip


def rows(data: pathlib.Path) -> list[str]:
  """The hard texts, then every prompt and answer of the real pairs."""
  pairs = json.loads(data.read_text())
  return [*HARD, *(text for pair in pairs for text in (*_prompts(pair), *answers(pair)))]


def _prompts(pair: dict) -> list[str]:
  return [turn["value"] for turn in pair["conversations"]]


def answers(pair: dict) -> tuple[str, str]:
  """Both answers of a pair."""
  return pair["chosen"]["value"], pair["rejected"]["value"]


def digest(ids) -> str:
  """Of the ids of a text, 8 hexadecimal digits."""
  return hashlib.sha256(struct.pack(f"<{len(ids)}I", *ids)).hexdigest()[:8]


def spelling() -> list[str]:
  """The characters by which byte-level vocabularies spell bytes 0 to 255."""
  kept = [b for b in range(256) if chr(b).isprintable() and b not in (32, 160, 173)]
  rest = iter(range(256, 512))
  return [chr(b) if b in kept else chr(next(rest)) for b in range(256)]


WORDS = ("the", " the", " and", " with", "123", "qzx")


def vocabulary() -> tuple[list[str], list[tuple[str, str]]]:
  """(tokens, merges): two special tokens, bytes, many pairs of them, and WORDS.

  A pair of bytes becomes one token wherever no split lies between them, so that moving a split
  changes ids. No merge makes the words: they are whole only where the vocabulary comes first.
  """
  spelled = spelling()
  signs = b" \n\r\t'.,!-/$<=_:\"(0123456789stremvldSTREMVLDaAbBzZ"
  letters = bytes(range(65, 91)) + bytes(range(97, 123))
  leads, follows = bytes(range(0xC2, 0xF1)), bytes(range(0x80, 0xC0))
  pairs = [
    *itertools.product(signs, signs),
    *itertools.product(b" \n.'\t/", letters),
    *itertools.product(letters, b" \n.'\t/"),
    *itertools.product(follows, (0xCC, 0xCD, 0xE0, 0xE2, 0xE4, 0xEF, 0xF0, 0xD0, 0xD9, 0xC2, 0xC3)),
    *itertools.product(b" 1aA\n.", leads),
    *itertools.product(follows, b" 1aA\n.'"),
  ]
  merges = [(spelled[a], spelled[b]) for a, b in dict.fromkeys(pairs)]
  words = [text.replace(" ", spelled[32]) for text in WORDS]
  return ["<s>", "</s>", *spelled, *map("".join, merges), *words], merges


def small_gguf(name: str | None, kind: str = "gpt2") -> bytes:
  """A whole llama of that vocabulary, whose weights are zeros.

  Args:
    name: in tokenizer.ggml.pre; None: there is no such field.
    kind: in tokenizer.ggml.model.
  """
  tokens, merges = vocabulary()
  values = {
    "tokenizer.ggml.model": kind,
    "tokenizer.ggml.pre": name,
    "tokenizer.ggml.tokens": tokens,
    "tokenizer.ggml.token_type": [3, 3] + [1] * (len(tokens) - 2),
    "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
  }
  fields = [(key, layout, values.get(key, value)) for key, layout, value in FIELDS]
  fields = [field for field in fields if field[2] is not None]
  tensors = [
    (key, (D, len(tokens)) if key == "token_embd.weight" else shape, F32)
    for key, shape, _ in TENSORS
  ]
  header, _ = gguf_header(fields, tensors)
  start = b"".join(v if k == "s" else struct.pack("<" + k, v) for k, v in header)
  return start + bytes(-len(start) % 32 + sum(4 * math.prod(shape) for _, shape, _ in tensors))
