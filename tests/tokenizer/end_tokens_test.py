"""Which tokens end an answer, which one ends a turn, and that hosts and runs agree on them."""

import dataclasses
import json
import types
from typing import Any

import pytest

from simpo_jax.checkpoint import resume
from simpo_jax.errors import UserError
from simpo_jax.export.runs import export_run
from simpo_jax.models.weights import open_model
from simpo_jax.program.ledger import hex_digest
from simpo_jax.runtime.fingerprint import data_fields, model_fields, tokenizer_identity
from simpo_jax.tokenizer.load import load_tokenizer
from support.hf_models import load
from support.hf_tokenizers import CHATML, ENDOFTEXT, EOS, IM_END, PLAIN, save_tokenizer
from support.saved_runs import save
from support.tiny_model_files import CONFIG, TOKENIZER_FILES, WEIGHTS


def _write(folder, **files):
  for name, value in files.items():
    (folder / f"{name}.json").write_text(json.dumps(value))


def _ends(folder):
  return load_tokenizer(str(folder)).eos_ids


def test_ends_are_generation_configs_else_configs(tmp_path):
  save_tokenizer(tmp_path)
  _write(tmp_path, config={"eos_token_id": [ENDOFTEXT, IM_END]})
  assert _ends(tmp_path) == (EOS, IM_END, ENDOFTEXT)
  _write(tmp_path, generation_config={"eos_token_id": IM_END})
  assert _ends(tmp_path) == (EOS, IM_END), "transformers reads config.json's no longer"
  _write(tmp_path, generation_config={"eos_token_id": None, "temperature": 0.5})
  assert _ends(tmp_path) == (EOS, IM_END, ENDOFTEXT)


@pytest.mark.parametrize(
  ("config", "ends"),
  (
    ({"text_config": {"eos_token_id": ENDOFTEXT}}, (EOS, IM_END, ENDOFTEXT)),
    (
      {"eos_token_id": None, "text_config": {"eos_token_id": [ENDOFTEXT]}},
      (EOS, IM_END, ENDOFTEXT),
    ),
    ({"eos_token_id": EOS, "text_config": {"eos_token_id": ENDOFTEXT}}, (EOS, IM_END)),
    ({"eos_token_id": -1}, (EOS, IM_END)),
    ({"eos_token_id": []}, (EOS, IM_END)),
    ({}, (EOS, IM_END)),
  ),
)
def test_forms_of_a_config(config, ends, tmp_path):
  save_tokenizer(tmp_path)
  _write(tmp_path, config=config)
  assert _ends(tmp_path) == ends


@pytest.mark.parametrize(
  ("eos", "message"),
  (
    (
      1005,
      "the end token 1005 of .* is beyond its vocabulary of 1005 tokens; correct eos_token_id",
    ),
    ([EOS, 10**6], "the end token 1000000 of"),
    ("</s>", "config.json says eos_token_id=</s>, which is neither an id nor a list of ids"),
    ([EOS, None], "which is neither an id"),
    (True, "which is neither an id"),
  ),
)
@pytest.mark.parametrize("name", ("config", "generation_config"))
def test_what_is_no_id_of_the_vocabulary_is_refused(eos, message, name, tmp_path):
  save_tokenizer(tmp_path)
  _write(tmp_path, **{name: {"eos_token_id": eos}})
  with pytest.raises(UserError, match=message) as error:
    load_tokenizer(str(tmp_path))
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
  ("template", "end"),
  (
    (CHATML, IM_END),
    (CHATML.replace("<|im_end|>", "{{ eos_token }}"), EOS),
    ("{{ messages[0].content }}<|endoftext|>", ENDOFTEXT),
    (PLAIN, EOS),
    (None, EOS),
  ),
)
def test_a_turn_ends_as_its_template_ends_it(template, end, tmp_path):
  tokenizer = save_tokenizer(tmp_path, template)
  assert tokenizer.turn_end == end and tokenizer.turn_end in tokenizer.eos_ids
  assert tokenizer.eos_ids[0] == EOS, "plain text ends with the tokenizer's own"


@pytest.fixture
def model(tmp_path):
  """A model's folder whose config.json has two end tokens, one of them its tokenizer's own."""
  folder = tmp_path / "model"
  folder.mkdir()
  files = {**WEIGHTS, **TOKENIZER_FILES}
  for name, data in files.items():
    if name != "generation_config.json":
      (folder / name).write_bytes(data)
  _write(folder, config={**CONFIG, "vocab_size": 40, "eos_token_id": [1, 7]})
  return folder


def test_an_export_keeps_all_ends(model, tmp_path):
  export_run(save(tmp_path / "run", model, load(model)[1]), tmp_path / "out")
  found = json.loads((tmp_path / "out" / "generation_config.json").read_text())
  assert set(found["eos_token_id"]) == set(_ends(model)) >= {1, 7}
  assert _ends(tmp_path / "out") == _ends(model)


def test_hosts_compare_ends_at_the_start(model):
  tokenizer = load_tokenizer(str(model))

  def fields(**changes):
    run: Any = types.SimpleNamespace(
      tokenizer=dataclasses.replace(tokenizer, **changes),
      model=open_model(str(model)),
      **dict.fromkeys(("train_pairs", "eval_pairs", "packed", "pool"), ""),
    )
    return data_fields(run)

  before = fields()
  for changes in ({"eos_ids": (1, 3)}, {"eos_ids": (1, 7, 3)}, {"turn_end": 7}):
    changed = {name for name, value in fields(**changes).items() if value != before[name]}
    assert "end tokens" in changed <= {"end tokens", "tokenizer"}, changes


def test_runs_compare_ends(model):
  tokenizer, opened = load_tokenizer(str(model)), open_model(str(model))
  other = dataclasses.replace(tokenizer, eos_ids=(1, 3))
  before, after = model_fields(opened, tokenizer), model_fields(opened, other)
  assert before["end tokens"] != after["end tokens"]
  with pytest.raises(UserError, match="these have changed: .*end tokens"):
    resume.check_identity(model, before, {**before, "end tokens": after["end tokens"]})


def test_a_run_of_a_version_that_read_fewer_ends_goes_on(model):
  """Its checkpoint's digest is of a tokenizer without them, and has no field of end tokens."""
  tokenizer = load_tokenizer(str(model))
  assert tokenizer.later_ends == (7,)
  was = dataclasses.replace(tokenizer, eos_ids=(1, 3), later_ends=())
  assert hex_digest(tokenizer_identity(tokenizer)) == hex_digest(tokenizer_identity(was))
  now = model_fields(open_model(str(model)), tokenizer)
  resume.check_identity(model, {k: v for k, v in now.items() if k != "end tokens"}, now)
