"""A folder's tokenizer.json or tokenizer.model is what encodes, whatever class is named."""

import json

import pytest
import sentencepiece
import tokenizers
from sentencepiece import sentencepiece_model_pb2

from simpo_jax.errors import UserError
from simpo_jax.tokenizer.folder_backend import PROBE
from simpo_jax.tokenizer.load import load_tokenizer
from simpo_jax.tokenizer.tokenizer import encode_with_bos
from support.gguf_tokenizers import sentence_pieces
from support.hf_splits import KINDS, save_kind
from support.split_texts import HARD

_TEXTS = (*HARD, PROBE, "<｜User｜>a</s> b <s> c", "aaaaaaaaa")


@pytest.mark.parametrize("name", KINDS)
def test_ids_are_those_of_tokenizer_json(name, tmp_path):
  rust = save_kind(tmp_path, name)
  tokenizer = load_tokenizer(str(tmp_path))
  for text in _TEXTS:
    ids = rust.encode(text, add_special_tokens=False).ids
    assert tokenizer.encode(text) == ids, text
    assert tokenizer.decode(ids) == rust.decode(ids), text
  assert encode_with_bos(tokenizer, PROBE) == rust.encode(PROBE).ids
  assert tokenizer.vocab_size == max(rust.get_vocab().values()) + 1
  special = (tokenizer.bos_id, tokenizer.eos_ids[0])
  assert special == (rust.token_to_id("<s>"), rust.token_to_id("</s>"))


def test_whether_bos_comes_first_is_tokenizer_jsons(tmp_path):
  save_kind(tmp_path, "llama2", adds_bos=False)
  assert not load_tokenizer(str(tmp_path)).adds_bos


def _declare(folder, **config):
  path = folder / "tokenizer_config.json"
  path.write_text(json.dumps({**json.loads(path.read_text()), **config}))


def test_tokens_that_other_files_declare_are_added(tmp_path):
  rust = save_kind(tmp_path, "deepseek llama")
  size, the = rust.get_vocab_size(), rust.get_vocab()["the"]
  declared = {
    str(size): {"content": "<|im_end|>", "special": True},
    str(size + 1): {"content": "<tool>", "special": False, "normalized": False},
    str(the): {"content": "the", "special": True, "rstrip": True},
  }
  _declare(tmp_path, added_tokens_decoder=declared, pad_token="<pad>")
  tokenizer = load_tokenizer(str(tmp_path))
  assert tokenizer.encode("<tool><|im_end|>the  <pad>") == [size + 1, size, the, size + 2]
  assert tokenizer.decode([size, size + 1, the]) == "<tool>" and tokenizer.pad_id == size + 2
  assert tokenizer.vocab_size == size + 3
  _declare(tmp_path, added_tokens_decoder={"7": {"content": "<|im_end|>", "special": True}})
  with pytest.raises(UserError, match=f"'<.im_end.>' has the id 7 in .*, and {size} in the voc"):
    load_tokenizer(str(tmp_path))


def test_older_files_of_added_tokens(tmp_path):
  rust = save_kind(tmp_path, "gpt2")
  size = rust.get_vocab_size()
  (tmp_path / "added_tokens.json").write_text(json.dumps({"<b>": size + 1, "<|im_end|>": size}))
  (tmp_path / "special_tokens_map.json").write_text(json.dumps({"eos_token": "<|im_end|>"}))
  tokenizer = load_tokenizer(str(tmp_path))
  assert tokenizer.encode("<b><|im_end|>") == [size + 1, size]
  assert tokenizer.decode([size, size + 1]) == "<b>"


def test_a_class_adds_no_token_of_its_own(tmp_path):
  rust = save_kind(tmp_path, "deepseek qwen")
  path = tmp_path / "tokenizer_config.json"
  config = json.loads(path.read_text())
  del config["unk_token"]  # LlamaTokenizer's is <unk>
  path.write_text(json.dumps(config))
  tokenizer = load_tokenizer(str(tmp_path))
  assert tokenizer.vocab_size == rust.get_vocab_size()
  assert tokenizer.encode("<unk>") == rust.encode("<unk>", add_special_tokens=False).ids


# --- tokenizer.model ------------------------------------------------------------------------------


def _save_model(folder, prefix=True, kind=2, blanks=False, whole=False):
  """A tokenizer.model alone, and SentencePiece's own encoder of it; whole: it has <USER>."""
  fields, proto = sentence_pieces(), vars(sentencepiece_model_pb2)["ModelProto"]()
  kinds = fields["token_type"]
  for token, score, of in zip(fields["tokens"], fields["scores"], kinds, strict=True):
    if token != "<USER>" or whole:
      proto.pieces.add(piece=token, score=score, type=of)
  proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = kind, True
  proto.normalizer_spec.name = "identity"
  proto.normalizer_spec.add_dummy_prefix = prefix
  proto.normalizer_spec.remove_extra_whitespaces = blanks
  proto.normalizer_spec.escape_whitespaces = True
  (folder / "tokenizer.model").write_bytes(proto.SerializeToString())
  config = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False}
  (folder / "tokenizer_config.json").write_text(json.dumps(config))
  (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
  return sentencepiece.SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))


@pytest.mark.parametrize("prefix", (True, False))
def test_ids_are_those_of_tokenizer_model(prefix, tmp_path):
  theirs = _save_model(tmp_path, prefix, whole=not prefix)
  tokenizer = load_tokenizer(str(tmp_path))
  for text in (*HARD, PROBE, "aaaaaaaaa", "a <USER> b"):
    assert tokenizer.encode(text) == theirs.encode(text), text
    assert tokenizer.decode(tokenizer.encode(text)) == theirs.decode(theirs.encode(text))
  assert encode_with_bos(tokenizer, "the") == [1, *theirs.encode("the")]
  assert tokenizer.eos_ids == (2,) and tokenizer.encode("</s>") == [2]


@pytest.mark.parametrize("change", ({"kind": 1}, {"blanks": True}, {"whole": True}))
def test_a_model_that_is_read_otherwise_is_refused(change, tmp_path):
  _save_model(tmp_path, **change)
  with pytest.raises(UserError, match="cannot be read as SentencePiece reads it.*tokenizer.json"):
    load_tokenizer(str(tmp_path))


def test_a_tokenizer_model_that_is_none_is_refused(tmp_path):
  _save_model(tmp_path)
  (tmp_path / "tokenizer.model").write_bytes(b"no")
  with pytest.raises(UserError, match="tokenizer") as error:
    load_tokenizer(str(tmp_path))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ("tekken.json", "tokenizer.model.v3"))
def test_mistral_commons_formats_are_refused_by_name(name, tmp_path):
  (tmp_path / name).write_text("{}")
  for source in (str(tmp_path), f"random:{tmp_path}"):
    with pytest.raises(UserError, match=f"its tokenizer in {name}, a format of mistral-common"):
      load_tokenizer(source)
  save_kind(tmp_path, "llama3")
  assert load_tokenizer(str(tmp_path)).encode("the")


def test_a_class_that_loses_text_is_refused(tmp_path):
  rust = tokenizers.Tokenizer(tokenizers.models.BPE(vocab={"a": 0, "</s>": 1}, merges=[]))
  rust.model.save(str(tmp_path))
  config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
  (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
  with pytest.raises(UserError, match="tokenizer.json"):
    load_tokenizer(str(tmp_path))
