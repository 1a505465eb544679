"""What a GGUF's `tokenizer.ggml` fields say is done as llama.cpp does it.

golden/gguf_fields.json has llama.cpp's answers; make_gguf_fields.py asked for them.
"""

import functools
import json

import pytest
import tokenizers
import transformers

from simpo_jax.errors import UserError
from simpo_jax.export.runs import export_run
from simpo_jax.tokenizer.load import load_tokenizer
from simpo_jax.tokenizer.tokenizer import encode_with_bos
from support.folders import GOLDEN
from support.gguf_tokenizers import (
  CASES,
  CONTROL,
  byte_pieces,
  ends,
  gguf_of,
  sentence_pieces,
  texts,
)
from support.hf_models import load
from support.saved_runs import save
from support.split_texts import digest


@functools.cache
def _golden():
  return json.loads((GOLDEN / "gguf_fields.json").read_text())


def _load(folder, fields):
  path = folder / "model.gguf"
  path.write_bytes(gguf_of(fields))
  return load_tokenizer(str(path))


def _expected(name):
  return _golden()["cases"][name]["ids"].split()


def test_every_case_was_asked():
  assert _golden()["cases"].keys() == CASES.keys()


@pytest.mark.parametrize("name", CASES)
def test_ids_and_ends_are_llama_cpps(name, tmp_path):
  tokenizer = _load(tmp_path, CASES[name])
  found = [digest(encode_with_bos(tokenizer, text)) for text in texts()]
  # llama.cpp puts a BOS before a text that begins with one, and tells.
  twice = {t for t in texts() if t.startswith("<s>") or t.startswith("<｜begin▁of▁sentence｜>")}
  pairs = zip(texts(), found, _expected(name), strict=True)
  assert [
    text for text, a, b in pairs if a != b and not (text in twice and tokenizer.adds_bos)
  ] == []
  assert sorted(tokenizer.eos_ids) == _golden()["cases"][name]["ends"]


def test_whether_bos_comes_first_is_the_splits_where_the_file_does_not_say(tmp_path):
  begun = _golden()["begin with BOS"]
  assert sum(begun.values()) == 7
  for name, begins in begun.items():
    fields = {**ends(("</s>",)), "pre": name}
    assert _load(tmp_path, fields).adds_bos == begins, name
    assert _load(tmp_path, {**fields, "add_bos_token": not begins}).adds_bos != begins, name


@pytest.mark.parametrize("name", ("spm", "spm without a prefix", "llama-bpe", "deepseek"))
def test_an_exported_tokenizer_is_the_ggufs(name, tmp_path):
  path = tmp_path / "model.gguf"
  ours = _load(tmp_path, CASES[name])
  export_run(save(tmp_path / "run", path, load(path)[1]), tmp_path / "out")
  rust = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  assert [digest(rust.encode(text).ids) for text in texts()] == _expected(name)
  assert [digest(theirs.encode(text)) for text in texts()] == _expected(name)
  again = load_tokenizer(str(tmp_path / "out"))
  assert (again.bos_id, again.adds_bos, again.pad_id) == (ours.bos_id, ours.adds_bos, ours.pad_id)
  assert set(again.eos_ids) == set(ours.eos_ids)


def test_sentence_piece_text_is_decoded_as_it_was(tmp_path):
  for prefix in (True, False):
    tokenizer = _load(tmp_path, {**sentence_pieces(), "add_space_prefix": prefix})
    for text in ("the  thing\n\n é 😀 ह", " lead", "", "aaaaa=="):
      assert tokenizer.decode(tokenizer.encode(text)) == text


def test_an_end_of_the_kind_normal_is_not_shown(tmp_path):
  tokenizer = _load(tmp_path, CASES["an end of the kind normal"])
  [end] = [i for i in tokenizer.eos_ids if i != 1]
  assert tokenizer.encode("a<|im_end|>")[1:] == [end] and tokenizer.decode([end]) == ""


_SPM = sentence_pieces()


@pytest.mark.parametrize(
  ("fields", "message"),
  (
    ({**_SPM, "remove_extra_whitespaces": True}, "remove_extra_whitespaces, which is not supp"),
    ({**_SPM, "scores": None}, "has no tokenizer.ggml.scores, which say how"),
    ({**_SPM, "scores": [0.0] * len(_SPM["tokens"])}, "have one score, which says nothing about"),
    ({**_SPM, "tokens": [t.replace("<0x41>", "<A>") for t in _SPM["tokens"]]}, "byte <0x41>, so"),
    ({**_SPM, "tokens": ["<s>", *_SPM["tokens"][1:]]}, "has the token '<s>' twice"),
    ({**_SPM, "token_type": [CONTROL]}, "tokens and 1 types of them"),
    ({**_SPM, "model": "t5"}, "of the kind tokenizer.ggml.model='t5', which is not supported"),
    ({**_SPM, "eos_token_id": 99999}, "says tokenizer.ggml.eos_token_id=99999, but has"),
    (
      {**byte_pieces(), "bos_token_id": None, "add_bos_token": True},
      "says tokenizer.ggml.add_bos_token, but names no tokenizer.ggml.bos_token_id",
    ),
  ),
)
def test_what_cannot_be_done_is_refused(fields, message, tmp_path):
  with pytest.raises(UserError, match=message) as error:
    _load(tmp_path, fields)
  assert "\n" not in str(error.value)


def test_an_id_that_means_none_is_none(tmp_path):
  tokenizer = _load(tmp_path, {**_SPM, "padding_token_id": 2**32 - 1, "seperator_token_id": 99999})
  assert tokenizer.pad_id == tokenizer.eos_ids[0] == 2
