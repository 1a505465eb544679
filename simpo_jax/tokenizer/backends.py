"""`tokenizers` built from a vocabulary alone, as GGUF files and tokenizer.model store one."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers
from tokenizers.processors import TemplateProcessing

from simpo_jax.errors import UserError
from simpo_jax.tokenizer.gguf_split import Split, apply_split

_BLANK = "\u2581"  # SentencePiece's space
_BYTES = tuple(f"<0x{byte:02X}>" for byte in range(256))


class Vocabulary(NamedTuple):
  """Tokens in order of their ids.

  Attributes:
    origin: the file, for error messages.
    special: ids of tokens that no text is made of, such as `</s>`; `decode` leaves them out.
    whole: ids of tokens that are found in a text before it is split, and that `decode` shows.
  """

  origin: str
  tokens: Sequence[str]
  special: Sequence[int]
  whole: Sequence[int]


def byte_level(vocab: Vocabulary, merges: Sequence[str], split: Split) -> Tokenizer:
  """Returns a byte-level BPE.

  Args:
    merges: "LEFT RIGHT", the first to apply first.

  Raises:
    UserError: a token occurs twice.
  """
  pairs = [_pair(merge) for merge in merges]
  backend = Tokenizer(models.BPE(vocab=_ids(vocab), merges=pairs))
  apply_split(backend, split)
  backend.decoder = decoders.ByteLevel()
  _add(backend, vocab, normalized=False)
  return backend


def sentence_piece(vocab: Vocabulary, scores: Sequence[float], prefix: bool) -> Tokenizer:
  """Returns SentencePiece's BPE: of all pairs that form a token, the one of highest score merges.

  Args:
    scores: one per token.
    prefix: a space precedes every text, and every text that follows a special token.

  Raises:
    UserError: a token occurs twice, bytes are missing, or the scores do not order the merges.
  """
  ids = _ids(vocab)
  if missing := [name for name in _BYTES if name not in ids]:
    raise UserError(
      f"the vocabulary of {vocab.origin} has no token for the byte {missing[0]}, so not every text "
      "can be encoded with it; use the model's own folder with tokenizer.json"
    )
  merges = _merges(ids, scores)
  merged = {ids[left + right] for left, right in merges}
  if len(merged) > 1 and len({scores[i] for i in merged}) == 1:
    raise UserError(
      f"all tokens of {vocab.origin} have one score, which says nothing about the order of merges; "
      "take a newer conversion, or the model's own folder with tokenizer.json"
    )
  backend = Tokenizer(models.BPE(vocab=ids, merges=merges, fuse_unk=True, byte_fallback=True))
  spaces = normalizers.Replace(" ", _BLANK)
  backend.normalizer = (
    normalizers.Sequence([normalizers.Prepend(_BLANK), spaces]) if prefix else spaces
  )
  decoding = [decoders.Replace(_BLANK, " "), decoders.ByteFallback(), decoders.Fuse()]
  backend.decoder = decoders.Sequence([*decoding, *([decoders.Strip(" ", 1, 0)] if prefix else [])])
  # Some spell a token of blanks by spaces, others by SentencePiece's: only the latter needs this.
  _add(backend, vocab, normalized=not prefix)
  return backend


def add_bos_and_eos(backend: Tokenizer, bos: str | None, eos: str | None) -> None:
  """Makes `encode` with special tokens put these at the beginning and the end; None: nothing."""
  names = [name for name in (bos, eos) if name is not None]
  if names:
    backend.post_processor = TemplateProcessing(
      single=[*([bos] if bos else []), "$A", *([eos] if eos else [])],
      special_tokens=[(name, backend.token_to_id(name)) for name in dict.fromkeys(names)],
    )


def _ids(vocab: Vocabulary) -> dict[str, int]:
  ids = {token: i for i, token in enumerate(vocab.tokens)}
  if len(ids) < len(vocab.tokens):
    twice = next(token for i, token in enumerate(vocab.tokens) if ids[token] != i)
    raise UserError(
      f"{vocab.origin} has the token {twice!r} twice, so what its ids mean is not known; convert "
      "the model again, or use its own folder with tokenizer.json"
    )
  return ids


def _pair(merge: str) -> tuple[str, str]:
  left, _, right = merge[1:].partition(" ")  # the first character may be a space itself
  return merge[:1] + left, right


def _merges(ids: Mapping[str, int], scores: Sequence[float]) -> list[tuple[str, str]]:
  """Returns all pairs of tokens that form a third, by its score; longer left parts first."""
  pairs = [
    (token[:i], token[i:])
    for token in ids
    for i in range(1, len(token))
    if token[:i] in ids and token[i:] in ids
  ]
  return sorted(pairs, key=lambda pair: (-scores[ids[pair[0] + pair[1]]], -len(pair[0])))


def _add(backend: Tokenizer, vocab: Vocabulary, normalized: bool) -> None:
  backend.add_special_tokens(
    [AddedToken(vocab.tokens[i], special=True, normalized=False) for i in vocab.special]
  )
  backend.add_tokens([AddedToken(vocab.tokens[i], normalized=normalized) for i in vocab.whole])
