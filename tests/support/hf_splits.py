"""Folders of tokenizers whose classes in transformers have a pre-tokenization of their own.

Each is small, and made as the models are that it is named after: a byte-level BPE with their
regexes, or SentencePiece's BPE with their normalizers.
"""

import json
import pathlib

from tokenizers import (
  AddedToken,
  Regex,
  Tokenizer,
  decoders,
  models,
  normalizers,
  pre_tokenizers,
  processors,
)

from support.gguf_tokenizers import sentence_pieces
from support.split_texts import vocabulary

_LLAMA3 = (
  r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
  r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DEEPSEEK = ("\\p{N}{1,3}", "[一-龥぀-ゟ゠-ヿ]+", r"[\p{P}\p{S}]|\s+(?!\S)|\s+")
_LINES = [f"{chr(10) * n}" for n in (1, 2, 3, 4)]


def _byte_level(patterns: tuple[str, ...], nfc: bool = False) -> Tokenizer:
  tokens, merges = vocabulary()
  rust = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=merges))
  splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in patterns]
  rust.pre_tokenizer = pre_tokenizers.Sequence(
    [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
  )
  rust.normalizer = normalizers.NFC() if nfc else None
  rust.decoder = decoders.ByteLevel()
  return rust


def _gpt2() -> Tokenizer:
  rust = _byte_level(())
  digits = pre_tokenizers.Digits(individual_digits=True)  # as SmolLM's, of the class GPT2Tokenizer
  level = pre_tokenizers.ByteLevel(add_prefix_space=False)
  rust.pre_tokenizer = pre_tokenizers.Sequence([digits, level])
  return rust


def _pieces(extra: list[str]) -> Tokenizer:
  """A BPE of SentencePiece's spelling, without normalizer and decoder."""
  fields = sentence_pieces()
  tokens = [*fields["tokens"][:-2], *extra]
  ids = {t: i for i, t in enumerate(tokens)}
  pairs = [(t[:i], t[i:]) for t in tokens[259:] for i in range(1, len(t))]
  merges = [pair for pair in pairs if pair[0] in ids and pair[1] in ids]
  return Tokenizer(
    models.BPE(vocab=ids, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
  )


def _llama2() -> Tokenizer:
  rust = _pieces([])
  prepend, replace = normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")
  rust.normalizer = normalizers.Sequence([prepend, replace])
  rust.decoder = _sentence_piece_decoder(strip=True)
  return rust


def _mistral() -> Tokenizer:
  rust = _pieces([])
  rust.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
  rust.decoder = _sentence_piece_decoder(strip=True)
  return rust


def _gemma() -> Tokenizer:
  rust = _pieces([line for line in _LINES if line not in sentence_pieces()["tokens"]])
  rust.normalizer = normalizers.Replace(" ", "▁")
  rust.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
  rust.decoder = _sentence_piece_decoder(strip=False)
  rust.add_tokens([AddedToken(line, normalized=False) for line in _LINES[2:]])
  return rust


def _sentence_piece_decoder(strip: bool):
  parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
  return decoders.Sequence([*parts, *([decoders.Strip(" ", 1, 0)] if strip else [])])


# Name: (what makes tokenizer.json, tokenizer_class, model_type of config.json).
KINDS = {
  "gpt2": (_gpt2, "GPT2Tokenizer", "llama"),
  "gpt2 fast": (_gpt2, "GPT2TokenizerFast", "gpt2"),
  "qwen2": (lambda: _byte_level((_LLAMA3,), nfc=False), "Qwen2Tokenizer", "qwen2"),
  "qwen3": (lambda: _byte_level((_LLAMA3,), nfc=True), "Qwen2TokenizerFast", "qwen3"),
  "llama3": (lambda: _byte_level((_LLAMA3,)), "PreTrainedTokenizerFast", "llama"),
  "deepseek qwen": (lambda: _byte_level(_DEEPSEEK), "LlamaTokenizerFast", "qwen2"),
  "deepseek llama": (lambda: _byte_level(_DEEPSEEK), "LlamaTokenizer", "llama"),
  "llama2": (_llama2, "LlamaTokenizer", "llama"),
  "mistral": (_mistral, "LlamaTokenizer", "mistral"),
  "gemma2": (_gemma, "GemmaTokenizer", "gemma2"),
}


def save_kind(folder: pathlib.Path, name: str, adds_bos: bool = True) -> Tokenizer:
  """Writes a folder of one of KINDS; returns what its tokenizer.json, and nothing else, does."""
  make, kind, model_type = KINDS[name]
  rust = make()
  rust.add_special_tokens(["<s>", "</s>"])
  rust.add_special_tokens([AddedToken("<｜User｜>", special=True, normalized=False)])
  if adds_bos:
    rust.post_processor = processors.TemplateProcessing(
      single="<s> $A", special_tokens=[("<s>", rust.token_to_id("<s>"))]
    )
  rust.enable_truncation(8)  # some files have it; it is not for training
  rust.save(str(folder / "tokenizer.json"))
  config = {"tokenizer_class": kind, "bos_token": "<s>", "eos_token": "</s>", "unk_token": None}
  (folder / "tokenizer_config.json").write_text(json.dumps({**config, "legacy": True}))
  (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
  rust.no_truncation()
  return rust
