"""Every supported architecture gives transformers' logits from its own checkpoint."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import transformers

from simpo_jax.models import llama
from simpo_jax.models.hf_config import from_hf
from support.hf_models import GEMMA2, LLAMA3, VOCAB, hf_logits, hf_model, load, our_logits
from support.tiers import sweep

pytestmark = pytest.mark.model

torch = pytest.importorskip("torch")

LENGTH = 40
TOLERANCE = 2e-5  # logits have a standard deviation of about 1
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}

# name: (transformers class, its settings, how to save it, a field that must matter)
MODELS = {
  "llama": ("Llama", {}, {}, {}),
  "llama_llama3_rope": ("Llama", {"rope_parameters": LLAMA3}, {}, {"rope_scaling": None}),
  "llama_linear_rope": ("Llama", {"rope_parameters": LINEAR}, {}, {"rope_scaling": None}),
  "llama_sharded": ("Llama", {}, {"max_shard_size": "60KB"}, {}),
  "mistral_window": ("Mistral", {"sliding_window": 7}, {}, {"sliding_window": None}),
  "mistral_no_window": ("Mistral", {"sliding_window": None}, {}, {}),
  "qwen2": ("Qwen2", {}, {}, {"qkv_bias": False}),
  "gemma2": ("Gemma2", GEMMA2, {}, {"full_attention_every": 0}),
  "qwen3": ("Qwen3", {"head_dim": 32}, {}, {"qk_norm": False}),
  "smollm2": (
    "Llama",
    {
      "tie_word_embeddings": True,
      "num_attention_heads": 3,
      "head_dim": 20,
      "num_key_value_heads": 1,
      "hidden_size": 60,
    },
    {},
    {},
  ),
}


@sweep("name", MODELS, default=2)
def test_logits_equal_transformers(name, tmp_path):
  kind, settings, how, matters = MODELS[name]
  net = hf_model(kind, **settings)
  net.save_pretrained(tmp_path, **how)
  if how:
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
  tokens = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH), np.int32)
  expected = hf_logits(net, tokens)
  assert expected.std() > 0.5  # so that the tolerance means something

  cfg, params = load(tmp_path)
  np.testing.assert_allclose(our_logits(cfg, params, tokens), expected, atol=TOLERANCE, rtol=0)
  assert llama.count_params(cfg) == sum(p.numel() for p in net.parameters())
  if matters:  # otherwise this test would pass without the feature
    assert any(getattr(cfg, field) != value for field, value in matters.items())
    ablated = our_logits(dataclasses.replace(cfg, **matters), params, tokens)
    assert np.abs(ablated - expected).max() > 0.1


@sweep(
  "changes",
  (
    {"norm_plus_one": False},
    {"post_norms": False},
    {"scaled_embedding": False},
    {"hidden_act": "silu"},
    {"query_pre_attn_scalar": None},
    {"attn_logit_softcapping": None},
    {"final_logit_softcapping": None},
    {"sliding_window": None},
  ),
  ids=str,
)
def test_every_part_of_gemma2_matters(gemma2, changes):
  cfg, params, tokens, expected = gemma2
  (field, value), *_ = changes.items()
  assert getattr(cfg, field) != value
  ablated = our_logits(dataclasses.replace(cfg, **changes), params, tokens)
  assert np.abs(ablated - expected).max() > 0.01


@pytest.fixture(scope="module")
def gemma2(tmp_path_factory):
  """Config, weights, tokens and transformers' logits."""
  net, folder = hf_model("Gemma2", **GEMMA2), tmp_path_factory.mktemp("gemma2")
  net.save_pretrained(folder)
  tokens = np.random.default_rng(0).integers(0, VOCAB, (2, LENGTH), np.int32)
  return *load(folder), tokens, hf_logits(net, tokens)


def test_gemma2_in_bfloat16_rounds_its_root_as_transformers_does(gemma2):
  cfg = dataclasses.replace(gemma2[0], hidden_size=3584)  # Gemma-2-9B: 59.87, in bfloat16 59.75
  ours = llama.scale_embeddings(jnp.ones((1,), jnp.bfloat16), cfg)
  embedding = transformers.models.gemma2.modeling_gemma2.Gemma2TextScaledWordEmbedding
  theirs = embedding(1, 1, 0, embed_scale=3584**0.5).to(torch.bfloat16)
  theirs.weight.data.fill_(1.0)
  assert float(ours[0]) == theirs(torch.tensor(0)).item() != 3584**0.5


@pytest.mark.parametrize("stored", ("bfloat16", "float16"))
def test_half_precision_checkpoints_are_read_exactly(stored, tmp_path):
  net = hf_model("Llama").to(getattr(torch, stored))
  net.save_pretrained(tmp_path)
  _, params = load(tmp_path)
  q = np.stack([x.self_attn.q_proj.weight.detach().float().numpy().T for x in net.model.layers])
  np.testing.assert_array_equal(np.asarray(params["layers"]["q"]), q)
  _, params = load(tmp_path, "bfloat16")
  assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}


@pytest.mark.parametrize("rope", (LLAMA3, LINEAR, {"rope_type": "default", "rope_theta": 5e5}))
def test_old_and_new_rope_fields_mean_the_same(rope):
  sizes = dict(
    model_type="llama",
    vocab_size=8,
    hidden_size=64,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=4,
    rms_norm_eps=1e-5,
  )
  scaling = {k: v for k, v in rope.items() if k != "rope_theta"}
  old = from_hf({**sizes, "rope_theta": rope["rope_theta"], "rope_scaling": scaling})
  assert old == from_hf({**sizes, "rope_parameters": rope})
