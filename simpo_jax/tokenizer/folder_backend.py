"""The `tokenizers` tokenizer of a folder: that of tokenizer.json or tokenizer.model themselves.

Classes of transformers do not always read these files: some take the vocabulary from them, and the
pre-tokenization from their own code, which differs from one version to the next. So a class only
names the special tokens here, and encodes only where a folder has neither of the two files.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Tokenizer

from simpo_jax.errors import UserError, first_line
from simpo_jax.tokenizer.backends import Vocabulary, add_bos_and_eos, sentence_piece

JSON, MODEL, CONFIG = "tokenizer.json", "tokenizer.model", "tokenizer_config.json"
MISTRALS = ("tekken.json", "tokenizer.model.v3", "tokenizer.model.v2", "tokenizer.model.v1")
_PROTO: Any = vars(sentencepiece_model_pb2)["ModelProto"]  # made at import, so without types
# Where tokenizers differ: digits, contractions, spaces, newlines, scripts, marks, compatibility
# characters, emoji, characters of no vocabulary.
PROBE = (
  " lead  two   three 1 12 123 12345 1,000.5 a1 it's IT'S we'll 'RE don't\n 3\n\n4\n\n\n\n5\t6\t\t7"
  "\r\n a.b /c/d https://e.f?g=h&i#j snake_case camelCase HTMLParser x=10; {}[]()<>\"'`~@#$%^*|\\"
  " \u00c9t\u00e9 A\u00e9B e\u0301 n\u0303 Stra\u00dfe \ufb01 \u00bd \u2460 \uff21\uff11 \u2167 "
  "\u041f\u0440\u0438\u0432\u0435\u0442 \u0645\u0631\u062d\u0628\u0627 \u05e9\u05dc\u05d5\u05dd "
  "\u0928\u092e\u0938\u094d\u0924\u0947 \u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35 \u4f60\u597d\uff0c"
  "2024\u5e74 \u3053\u3093\u306b\u3061\u306f \uc548\ub155 \U0001f600 \U0001f44d\U0001f3fd "
  "\U0001f468\u200d\U0001f469\u200d\U0001f467 \u00a0\u3000\u200b\ufeff\u2028 aaaaaaa ======= \n  "
)


def folder_backend(folder: pathlib.Path, origin: str, hf: Any) -> Tokenizer:
  """Returns the tokenizer of a folder.

  Args:
    origin: what the user named, for error messages.
    hf: the folder's tokenizer as transformers reads it: it names special tokens.

  Raises:
    UserError: the folder's files contradict each other, or do not say how text becomes tokens.
    Exception: tokenizer.json is damaged.
  """
  if (folder / JSON).is_file():
    backend = Tokenizer.from_file(str(folder / JSON))
  elif (folder / MODEL).is_file():
    backend = _of_sentence_piece(folder / MODEL)
  else:
    return _of_class(origin, hf)
  backend.no_truncation()
  backend.no_padding()
  backend.encode_special_tokens = bool(getattr(hf, "split_special_tokens", False))
  _add_declared(backend, folder, origin, hf)
  if not (folder / JSON).is_file() and hf.encode("a")[:1] == [hf.bos_token_id]:
    add_bos_and_eos(backend, hf.bos_token, None)
  return backend


def _of_class(origin: str, hf: Any) -> Tokenizer:
  backend = getattr(hf, "backend_tokenizer", None)
  if backend is None or backend.decode(backend.encode(PROBE).ids) != PROBE:
    raise UserError(
      f"{origin} has no {JSON}, and transformers' {type(hf).__name__} does not give back the text "
      f"that it encodes; get {JSON} from the model's page"
    )
  return backend


def _of_sentence_piece(path: pathlib.Path) -> Tokenizer:
  """Reads a tokenizer.model, and compares its ids with SentencePiece's own."""
  model = _PROTO()
  try:
    processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    model.ParseFromString(path.read_bytes())
  except Exception as error:  # each library raises its own types
    raise UserError(
      f"{path} is not a model of SentencePiece ({first_line(error)}); get {JSON} from the model's "
      "page"
    ) from error
  piece, kinds = _PROTO.SentencePiece, [piece.type for piece in model.pieces]
  vocab = Vocabulary(
    str(path),
    [piece.piece for piece in model.pieces],
    [i for i, kind in enumerate(kinds) if kind in (piece.UNKNOWN, piece.CONTROL)],
    [i for i, kind in enumerate(kinds) if kind == piece.USER_DEFINED],
  )
  prefix = model.normalizer_spec.add_dummy_prefix
  backend = sentence_piece(vocab, [piece.score for piece in model.pieces], prefix)
  whole = "".join(f"a{vocab.tokens[i]} {vocab.tokens[i]}" for i in vocab.whole[:100])
  for text in (PROBE, PROBE.strip(), whole):
    if backend.encode(text, add_special_tokens=False).ids != processor.encode(text):
      raise UserError(
        f"{path} cannot be read as SentencePiece reads it: it is no BPE, or it changes characters "
        f"or blanks; get {JSON} from the model's page"
      )
  return backend


def _add_declared(backend: Tokenizer, folder: pathlib.Path, origin: str, hf: Any) -> None:
  """Adds the tokens that other files of the folder declare, as transformers does.

  Raises:
    UserError: one of them has another id than these files say.
  """
  config = _read(folder / CONFIG)
  listed = config.get("added_tokens_decoder")
  if listed is None:
    config = {**config, **_read(folder / "special_tokens_map.json")}
    names = set(_special(config))
    older = sorted(_read(folder / "added_tokens.json").items(), key=lambda item: item[1])
    listed = {i: {"content": name, "special": name in names} for name, i in older}
  known = {repr(token) for token in backend.get_added_tokens_decoder().values()}
  for i, fields in sorted(listed.items(), key=lambda item: int(item[0])):
    token = AddedToken(**{name: value for name, value in fields.items() if name != "__type"})
    if repr(token) not in known:
      backend.add_tokens([token])
    if backend.token_to_id(token.content) != int(i):
      raise UserError(
        f"in {origin}, the token {token.content!r} has the id {i} in {CONFIG} or added_tokens.json,"
        f" and {backend.token_to_id(token.content)} in the vocabulary; get all files from one place"
      )
  added = {token.content for token in backend.get_added_tokens_decoder().values()}
  names = dict.fromkeys([*_special(config), *_known(hf.special_tokens_map, backend)])
  backend.add_special_tokens([name for name in names if name not in added])


def _known(names: Mapping[str, Any], backend: Tokenizer) -> Iterator[str]:
  """The special tokens that a class has of itself, if they are in the vocabulary."""
  for name in names.values():
    if isinstance(name, str) and backend.token_to_id(name) is not None:
      yield name


def _special(config: Mapping[str, Any]) -> Iterator[str]:
  """The special tokens that a tokenizer_config.json or a special_tokens_map.json names."""
  for name, value in config.items():
    lists = name in ("additional_special_tokens", "extra_special_tokens")
    of = value if lists and isinstance(value, list) else [value] if name.endswith("_token") else []
    for token in of:
      text = token.get("content") if isinstance(token, dict) else token
      if isinstance(text, str) and text:
        yield text


def _read(path: pathlib.Path) -> dict[str, Any]:
  if not path.is_file():
    return {}
  value = json.loads(path.read_text(encoding="utf-8"))
  if not isinstance(value, dict):
    raise ValueError(f"{path.name} is not a JSON object")
  return value
