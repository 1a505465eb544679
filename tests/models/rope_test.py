"""Rotary settings of a config.json, in every form that transformers reads."""

import json

import numpy as np
import pytest
import transformers

from simpo_jax.models.config import rope_frequencies
from simpo_jax.models.weights import open_model
from support.hf_models import LLAMA3, VOCAB, hf_logits, hf_model, load, our_logits, save_llama

LINEAR = {"rope_type": "linear", "factor": 4.0}
ORIGINAL = "original_max_position_embeddings"


def without(settings, name):
  return {key: value for key, value in settings.items() if key != name}


FORMS = {
  "of transformers 5": {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
  "of transformers 4": {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
  "theta in both": {"rope_theta": 5e5, "rope_parameters": {"rope_theta": 2e4}},
  "theta beside": {"rope_theta": 5e5, "rope_parameters": LINEAR},
  "both": {"rope_scaling": LINEAR, "rope_parameters": {"rope_type": "default", "rope_theta": 5e5}},
  "both, theta beside": {
    "rope_theta": 2e4,
    "rope_scaling": {"rope_type": "linear", "factor": 2.0},
    "rope_parameters": {**LINEAR, "rope_theta": 5e5},
  },
  "none beside": {"rope_scaling": None, "rope_parameters": {**LINEAR, "rope_theta": 5e5}},
  "length before scaling": {"rope_parameters": without(LLAMA3, ORIGINAL)},
  "length before scaling, beside": {"rope_parameters": LLAMA3, ORIGINAL: 32},
}


@pytest.fixture
def folder(tmp_path):
  """`folder(settings)`: a model whose config.json has these, and no other rotary settings."""

  def make(settings):
    save_llama(tmp_path)
    path = tmp_path / "config.json"
    plain = without(without(json.loads(path.read_text()), "rope_parameters"), "rope_theta")
    path.write_text(json.dumps(plain | settings))
    return tmp_path

  return make


@pytest.mark.parametrize("name", FORMS)
def test_frequencies_are_those_of_transformers(name, folder):
  pytest.importorskip("torch")
  from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

  source = folder(FORMS[name])
  ours = rope_frequencies(open_model(str(source)).config)
  theirs = LlamaRotaryEmbedding(transformers.LlamaConfig.from_pretrained(source)).inv_freq
  np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-6)
  notes = open_model(str(source)).notes
  assert any("rope_scaling replaces" in note for note in notes) == name.startswith("both")


@pytest.mark.model
def test_logits_of_rope_scaling_beside_rope_parameters(folder):
  source = folder(FORMS["both"])
  pytest.importorskip("torch")
  net = transformers.AutoModelForCausalLM.from_pretrained(source, attn_implementation="eager")
  tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 40), np.int32)
  ours = our_logits(*load(source), tokens)
  np.testing.assert_allclose(ours, hf_logits(net.float().eval(), tokens), atol=2e-5, rtol=0)


def test_linear_scaling_lengthens_the_context(folder):
  """`RopeParameters.factor` of transformers: x times the length of pretraining."""
  assert open_model(str(folder({"rope_parameters": LINEAR}))).config.context == 4 * 64
  assert open_model(str(folder({"rope_parameters": LLAMA3}))).config.context == 64
  assert open_model(str(folder({}))).config.context == 64


@pytest.mark.model
def test_positions_beyond_those_of_pretraining(tmp_path):
  net = hf_model("Llama", rope_parameters={**LINEAR, "rope_theta": 1e4})
  net.save_pretrained(tmp_path)
  tokens = np.random.default_rng(0).integers(0, VOCAB, (1, 200), np.int32)
  ours = our_logits(*load(tmp_path), tokens)
  np.testing.assert_allclose(ours, hf_logits(net, tokens), atol=5e-5, rtol=0)
