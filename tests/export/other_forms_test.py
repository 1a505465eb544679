"""Exports of sources whose files are otherwise than their config says; transformers loads them."""

import dataclasses
import json
import types
from typing import Any

import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from simpo_jax.checkpoint import resume, saved_run
from simpo_jax.errors import UserError
from simpo_jax.export.runs import export_run
from simpo_jax.loaded_model.model import load_model
from simpo_jax.models.tying import UNTIED
from simpo_jax.models.weights import open_model
from simpo_jax.program.ledger import hex_digest
from simpo_jax.runtime.fingerprint import config_text, data_fields, model_fields
from simpo_jax.settings import Settings
from simpo_jax.tokenizer.load import load_tokenizer
from support.hf_models import SOURCE_VOCAB, hf_logits, load, our_logits, save_llama
from support.hf_tokenizers import save_tokenizer
from support.saved_runs import save

pytestmark = pytest.mark.model

TOKENS = np.random.default_rng(0).integers(0, SOURCE_VOCAB, (2, 40), np.int32)


def change_config(folder, **changes):
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.fixture
def source(tmp_path):
  folder = tmp_path / "source"
  save_llama(folder, vocab_size=SOURCE_VOCAB)
  save_tokenizer(folder)
  return folder


def exported(source, tmp_path):
  """(config.json, tensors) of an export of the untrained source; their logits are the same."""
  torch = pytest.importorskip("torch")
  cfg, params = load(source)
  out = tmp_path / "out"
  export_run(save(tmp_path / "run", source, params), out)
  how: Any = {"attn_implementation": "eager", "dtype": torch.float32}
  net = transformers.AutoModelForCausalLM.from_pretrained(out, **how)
  np.testing.assert_allclose(
    hf_logits(net.eval(), TOKENS), our_logits(cfg, params, TOKENS), atol=2e-5, rtol=0
  )
  return json.loads((out / "config.json").read_text()), load_file(out / "model.safetensors")


def test_a_head_of_its_own_is_exported(source, tmp_path):
  change_config(source, tie_word_embeddings=True)
  before = load_file(source / "model.safetensors")
  config, tensors = exported(source, tmp_path)
  assert config["tie_word_embeddings"] is False
  np.testing.assert_array_equal(tensors["lm_head.weight"], before["lm_head.weight"])
  assert UNTIED in load_model(str(source), {}).notes


def test_what_no_longer_holds_is_left_out(source, tmp_path):
  change_config(
    source,
    quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True},
    quantization={"bits": 4},
    compression_config={"format": "int"},
    architectures=["LlamaModel"],
    pad_token_id=SOURCE_VOCAB,
  )
  config, _ = exported(source, tmp_path)
  gone = ("quantization_config", "quantization", "compression_config", "pad_token_id")
  assert not [name for name in gone if config.get(name) is not None]
  assert config["architectures"] == ["LlamaForCausalLM"]


# --- runs of earlier versions, which dropped the head ----------------------------------------


@pytest.fixture
def dropped(source, tmp_path):
  """A run that such a version saved: without a head, and tied in its identity."""
  change_config(source, tie_word_embeddings=True)
  opened = open_model(str(source))
  tied = dataclasses.replace(opened.config, tie_word_embeddings=True)
  identity = model_fields(opened, load_tokenizer(str(source)))
  identity["model's config"] = hex_digest(config_text(tied))
  _, params = load(source)
  del params["lm_head"]
  return save(tmp_path / "run", source, params, identity=identity)


def test_a_run_without_the_head_is_exported_as_it_was_trained(dropped, tmp_path):
  assert saved_run.open_run(dropped).model.config.tie_word_embeddings
  export_run(dropped, tmp_path / "out")
  assert "lm_head.weight" not in load_file(tmp_path / "out" / "model.safetensors")
  assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] is True


def test_a_run_without_the_head_is_told_why_it_does_not_go_on(dropped, source):
  tokenizer, model = load_tokenizer(str(source)), open_model(str(source))
  now: Any = types.SimpleNamespace(program=None, model=model, tokenizer=tokenizer)
  with pytest.raises(UserError, match="earlier version .*dropped the lm_head.weight.*; finish it"):
    resume.find_resume_point(dropped, Settings(), model_fields(model, tokenizer), now)


def test_hosts_compare_whether_the_head_is_tied(source):
  """One value of one host's head is another: in no sample of the files that hosts compare."""
  change_config(source, tie_word_embeddings=True)
  path = source / "model.safetensors"
  tensors = load_file(path)

  def fields(head):
    save_file(tensors | {"lm_head.weight": head}, path)
    model, tokenizer = open_model(str(source)), load_tokenizer(str(source))
    shared = dict(train_pairs=[], eval_pairs=[], packed=None, pool=None)
    run: Any = types.SimpleNamespace(model=model, tokenizer=tokenizer, **shared)
    return data_fields(run)

  head = tensors["model.embed_tokens.weight"].copy()
  tied = fields(head)
  head[500, 3] += 1
  other = fields(head)
  assert "model's config" in [name for name in tied if tied[name] != other[name]]
