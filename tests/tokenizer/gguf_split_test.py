"""A GGUF's text in ids: those of llama.cpp and of the models' makers, for every split by name.

golden/split_ids.json has digests of their ids, row by row; make_split_ids.py made it.
"""

import functools
import json
import types
from typing import Any

import pytest
import tokenizers
import transformers

from simpo_jax.checkpoint import resume, saved_run, split_change
from simpo_jax.errors import UserError
from simpo_jax.export.runs import export_run
from simpo_jax.models.gguf_header import check_header
from simpo_jax.models.weights import open_model
from simpo_jax.runtime.fingerprint import SPLIT, model_fields
from simpo_jax.settings import Settings
from simpo_jax.tokenizer.gguf_metadata import without_torch
from simpo_jax.tokenizer.gguf_split import SPLITS, apply_split, split_named
from simpo_jax.tokenizer.huggingface import encode_earlier
from simpo_jax.tokenizer.load import load_tokenizer
from support.folders import GOLDEN
from support.hf_models import load
from support.real_data import data_file, preference_data
from support.real_model import smollm2_gguf
from support.saved_runs import save
from support.split_texts import HARD, answers, digest, rows, small_gguf

_GOLDEN = GOLDEN / "split_ids.json"
_DIGITS = 8  # of one row


@functools.cache
def _texts():
  return rows(data_file())


@functools.cache
def _golden():
  return json.loads(_GOLDEN.read_text())


def _expected(name):
  """Digests of the rows: hard texts, then real ones."""
  golden = _golden()
  text = golden["kinds"][golden["kind of"][name]]
  return [text[i : i + _DIGITS] for i in range(0, len(text), _DIGITS)]


def _differ(found, expected):
  assert len(found) == len(expected) == len(_texts())
  return [t for t, a, b in zip(_texts(), found, expected, strict=True) if a != b]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
  """`small(name)`: a GGUF of that split."""
  folder = tmp_path_factory.mktemp("gguf")

  def make(name, kind="gpt2"):
    path = folder / f"{name}.gguf"
    if not path.exists():
      path.write_bytes(small_gguf(name, kind))
    return path

  return make


@pytest.fixture(scope="module")
def ours(small):
  """`ours(name)`: digests of our ids of all texts."""
  path = small("gpt-2")
  with without_torch():
    hf = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)

  @functools.cache
  def of(split):
    apply_split(hf.backend_tokenizer, split)
    found = hf.backend_tokenizer.encode_batch(_texts(), add_special_tokens=False)
    return [digest(encoding.ids) for encoding in found]

  return lambda name: of(split_named(small(name), check_header(small(name))))


def test_every_name_was_compared():
  assert {name for name in _golden()["kind of"] if " by " not in name} == {*SPLITS, "SmolLM2"}


# Texts on which a maker's own ids are not llama.cpp's: letters in parts, which Qwen2 composes;
# marks and capitals of other scripts in Tekken (Hindi, Thai, Tamil, Russian; 5 real ones in Hindi).
_NOT_LLAMA_CPPS = {"llama-bpe": 0, "qwen2": 1, "tekken": 9}


@pytest.mark.parametrize("name", sorted(SPLITS))
def test_ids_are_llama_cpps(name, ours):
  known = []
  if name in _NOT_LLAMA_CPPS:
    known = _differ(_expected(f"{name} by its maker"), _expected(name))
  assert len(known) == _NOT_LLAMA_CPPS.get(name, 0)
  assert _differ(ours(name), _expected(name)) == known


@pytest.mark.parametrize("name", ("llama-bpe", "qwen2", "tekken"))
def test_ids_are_those_of_the_models_maker(name, ours):
  assert _differ(ours(name), _expected(f"{name} by its maker")) == []


@pytest.mark.model
def test_smollm2s_ids_are_llama_cpps_in_all_600_answers():
  tokenizer = load_tokenizer(str(smollm2_gguf()))
  assert _differ([digest(tokenizer.encode(t)) for t in _texts()], _expected("SmolLM2")) == []
  texts = {text for pair in preference_data() for text in answers(pair)}
  assert texts <= set(_texts()) and sum(len(answers(p)) for p in preference_data()) == 600
  # As in its tokenizer.json: Digits(individual_digits=True), then ByteLevel.
  assert tokenizer.decode([tokenizer.encode("1234")[0]]) == "1"


@pytest.mark.parametrize("name", ("llama-bpe", "smollm"))
def test_a_file_is_read_by_its_own_split(name, small):
  tokenizer = load_tokenizer(str(small(name)))
  found = [digest(tokenizer.encode(text)) for text in HARD]
  assert found == _expected(name)[: len(HARD)]


@pytest.mark.parametrize(
  ("name", "message"),
  (
    ("llama4", r"llama4.gguf splits text by tokenizer.ggml.pre='llama4', .* Known are default, "),
    ("\n", r"tokenizer.ggml.pre='\\n', which is not known here; use the model's own folder"),
    (None, r"has no tokenizer.ggml.pre, .*`gguf-new-metadata --pre-tokenizer=NAME .* smollm, "),
  ),
)
def test_a_split_that_is_not_known_is_refused(name, message, small, tmp_path):
  path = small(name) if name == "llama4" else tmp_path / "model.gguf"
  path.write_bytes(small_gguf(name))
  with pytest.raises(UserError, match=message) as error:
    load_tokenizer(str(path))
  assert "\n" not in str(error.value)


def test_a_vocabulary_of_sentencepiece_has_no_split(tmp_path):
  path = tmp_path / "model.gguf"
  path.write_bytes(small_gguf(None, "llama"))
  assert split_named(path, check_header(path)) is None


# --- runs of earlier versions --------------------------------------------------------------------


def _as_saved_before(path):
  """The identity that a checkpoint had when GGUFs were split by transformers' table."""
  identity = model_fields(open_model(str(path)), load_tokenizer(str(path)))
  return {name: value for name, value in identity.items() if name != SPLIT}


@pytest.mark.program
def test_a_run_of_the_old_split_is_told_what_changed(small, tmp_path):
  path = small("smollm")
  tokenizer, old = load_tokenizer(str(path)), encode_earlier(path)
  assert old(" 12") != tokenizer.encode(" 12"), "it was GPT-2's"
  run = save(tmp_path / "run", path, load(path)[1], identity=_as_saved_before(path))
  message = r"step_000003 is of an earlier version .*split text as .*smollm.gguf says, so "
  for read in (saved_run.open_run, lambda workdir: export_run(workdir, tmp_path / "out")):
    with pytest.raises(
      UserError, match=f"{message}.*; --force uses the split that the model's files name"
    ):
      read(run)
  assert saved_run.open_run(run, force=True).tokenizer.encode(" 12") == tokenizer.encode(" 12")
  now: Any = types.SimpleNamespace(program=None, model=open_model(str(path)), tokenizer=tokenizer)
  with pytest.raises(UserError, match=f"{message}.*; finish it with that version, or start over"):
    resume.find_resume_point(run, Settings(), model_fields(now.model, tokenizer), now)


@pytest.mark.parametrize("when", ("opened", "used"))
def test_a_file_that_transformers_cannot_read_is_told(when, small, tmp_path, monkeypatch):
  path = small("smollm")
  run = save(tmp_path / "run", path, load(path)[1], identity=_as_saved_before(path))
  now = open_model(str(path)), load_tokenizer(str(path))

  def fail(*args, **kwargs):
    raise KeyError("no\nfield")

  def earlier(*args, **kwargs):
    return types.SimpleNamespace(encode=fail)

  read = fail if when == "opened" else earlier
  monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", read)
  with pytest.raises(UserError, match=f"transformers does not read {path} .*no.*; try that$") as e:
    split_change.check_split(run, _as_saved_before(path), *now, "try that")
  assert "\n" not in str(e.value)


def test_a_run_whose_split_is_as_it_was_goes_on(small, tmp_path):
  path = small("gpt-2")
  run = save(tmp_path / "run", path, load(path)[1], identity=_as_saved_before(path))
  assert saved_run.open_run(run).step == 3


def test_another_split_is_another_identity(small):
  names = ("default", "gpt-2", "smollm", "llama-bpe", "qwen2", "tekken")
  model = open_model(str(small("gpt-2")))
  found = {model_fields(model, load_tokenizer(str(small(name))))[SPLIT] for name in names}
  assert len(found) == len(names)


# --- export --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ("smollm", "llama-bpe", "tekken by its maker"))
def test_an_exported_tokenizer_splits_as_the_gguf(name, small, tmp_path):
  path = small(name.split()[0])
  export_run(save(tmp_path / "run", path, load(path)[1]), tmp_path / "out")
  rust = tokenizers.Tokenizer.from_file(str(tmp_path / "out" / "tokenizer.json"))
  theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
  expected = _expected(name)[: len(HARD)]
  assert [digest(rust.encode(t, add_special_tokens=False).ids) for t in HARD] == expected
  assert [digest(theirs.encode(t, add_special_tokens=False)) for t in HARD] == expected
