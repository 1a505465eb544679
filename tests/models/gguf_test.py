"""GGUF files written here from transformers models, and read back."""

import dataclasses

import gguf
import numpy as np
import pytest

from simpo_jax.errors import UserError
from simpo_jax.models import config
from simpo_jax.models import gguf as weights_gguf
from simpo_jax.models.hf_config import from_hf
from simpo_jax.models.weights import open_model
from support.hf_models import VOCAB, hf_logits, hf_model, load, our_logits

pytestmark = pytest.mark.model

LLAMA31 = {
  "rope_type": "llama3",
  "rope_theta": 500000.0,
  "factor": 8.0,
  "low_freq_factor": 1.0,
  "high_freq_factor": 4.0,
  "original_max_position_embeddings": 8192,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
NAMES = {hf: ours for ours, hf in weights_gguf.HF_LAYER_NAMES.items()}


def write_gguf(path, net, arch, kind="F32", factors=None, drop=(), fields=None, **extra):
  """What llama.cpp's converter writes for a model, as far as reading it is concerned."""
  c, writer = net.config, gguf.GGUFWriter(path, arch)
  heads, kv_heads = c.num_attention_heads, c.num_key_value_heads
  writer.add_block_count(c.num_hidden_layers)
  writer.add_context_length(c.max_position_embeddings)
  writer.add_embedding_length(c.hidden_size)
  writer.add_feed_forward_length(c.intermediate_size)
  writer.add_head_count(heads)
  writer.add_head_count_kv(kv_heads)
  writer.add_layer_norm_rms_eps(c.rms_norm_eps)
  writer.add_rope_freq_base(c.rope_parameters["rope_theta"])
  if c.rope_parameters["rope_type"] == "linear":
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(c.rope_parameters["factor"])
  head_dim = getattr(c, "head_dim", c.hidden_size // heads)
  writer.add_key_length(head_dim)
  writer.add_value_length(head_dim)
  for name, value in extra.items():
    getattr(writer, name)(value)
  for name, value in (fields or {}).items():
    if isinstance(value, str):
      writer.add_string(f"{arch}.{name}", value)
    else:
      writer.add_float32(f"{arch}.{name}", value)
  for name, p in net.named_parameters():
    w = p.detach().numpy()
    for part, n in (("q_proj", heads), ("k_proj", kv_heads)):
      if arch == "llama" and part in name:
        w = w.reshape(n, 2, -1, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
    name = _gguf_name(name)
    if name not in drop:
      quant = gguf.GGMLQuantizationType["F32" if w.ndim == 1 else kind]
      writer.add_tensor(name, gguf.quantize(w, quant), raw_dtype=quant)
  if factors is not None:
    writer.add_tensor("rope_freqs.weight", factors.astype(np.float32))
  writer.write_header_to_file()
  writer.write_kv_data_to_file()
  writer.write_tensors_to_file()
  writer.close()
  return path


def _gguf_name(name):
  outer = {hf: ours for ours, hf in weights_gguf.HF_NAMES.items()}
  if name in outer:
    return outer[name]
  layer, rest = name.removeprefix("model.layers.").split(".", 1)
  middle, end = rest.rsplit(".", 1)
  return f"blk.{layer}.{NAMES[middle]}.{end}"


@pytest.mark.parametrize(
  "kind,arch,settings",
  (
    ("Llama", "llama", {}),
    ("Llama", "llama", {"tie_word_embeddings": True}),
    ("Llama", "llama", {"rope_parameters": LINEAR}),
    ("Mistral", "llama", {"sliding_window": 7}),
    ("Qwen2", "qwen2", {}),
    ("Qwen3", "qwen3", {"head_dim": 32}),
  ),
)
def test_logits_equal_transformers(kind, arch, settings, tmp_path):
  net = hf_model(kind, **settings)
  window = settings.get("sliding_window")
  extra = {"add_sliding_window": window} if window else {}
  path = write_gguf(tmp_path / "m.gguf", net, arch, **extra)
  tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 40), np.int32)
  cfg, params = load(path)
  # GGUF stores the epsilon as a float32.
  exact = dataclasses.replace(cfg, rms_norm_eps=net.config.rms_norm_eps)
  assert exact == from_hf(net.config.to_dict())
  ours = our_logits(cfg, params, tokens)
  np.testing.assert_allclose(ours, hf_logits(net, tokens), atol=2e-5, rtol=0)


@pytest.mark.parametrize("factor", (8.0, 32.0))
def test_llama3_rope_factors(factor, tmp_path):
  net = hf_model("Llama", head_dim=32, rope_parameters={**LLAMA31, "factor": factor})
  wanted = from_hf(net.config.to_dict())
  plain = from_hf(
    net.config.to_dict() | {"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
  )
  factors = config.rope_frequencies(plain) / config.rope_frequencies(wanted)
  cfg, _ = weights_gguf.open_gguf(write_gguf(tmp_path / "m.gguf", net, "llama", factors=factors))
  assert cfg.rope_scaling and cfg.rope_scaling.kind == "llama3"
  np.testing.assert_allclose(
    config.rope_frequencies(cfg), config.rope_frequencies(wanted), rtol=1e-6
  )
  with pytest.raises(UserError, match="rope_freqs.weight beside linear rope scaling"):
    both = {"rope.scaling.factor": 2.0}
    weights_gguf.open_gguf(
      write_gguf(tmp_path / "m.gguf", net, "llama", factors=factors, fields=both)
    )
  factors[3] *= 1.5
  with pytest.raises(UserError, match="rope_freqs.weight is not Llama 3's"):
    weights_gguf.open_gguf(write_gguf(tmp_path / "m.gguf", net, "llama", factors=factors))


@pytest.mark.parametrize("kind", ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"))
def test_slices_equal_the_whole(kind, tmp_path):
  """Blocks of 32 values: slices that start and end inside, on and across their borders."""
  net = hf_model("Llama")
  _, weights = weights_gguf.open_gguf(write_gguf(tmp_path / "m.gguf", net, "llama", kind))
  for name in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"):
    name = f"model.layers.1.{name}.weight"
    original = net.get_parameter(name).detach().numpy()
    whole = weights.read(name, tuple(slice(0, n) for n in original.shape))
    assert weights.shapes[name] == original.shape
    np.testing.assert_allclose(whole, original, atol={"Q4_0": 0.1, "Q4_1": 0.1}.get(kind, 5e-3))
    for rows in (slice(0, 8), slice(5, 23), slice(31, 32)):
      for columns in (slice(0, 32), slice(32, 64), slice(7, 50), slice(33, 34)):
        np.testing.assert_array_equal(weights.read(name, (rows, columns)), whole[rows, columns])


@pytest.mark.parametrize(
  "fields,scaled",
  (
    ({"rope.scaling.factor": 4.0}, True),
    ({"rope.scale_linear": 4.0}, True),
    ({"rope.scaling.factor": 4.0, "rope.scale_linear": 9.0}, True),
    ({"rope.scaling.type": "linear", "rope.scale_linear": 4.0}, True),
    ({"rope.scaling.type": "none", "rope.scaling.factor": 4.0}, False),
    ({"rope.scaling.factor": 0.0}, False),
    ({"rope.scaling.factor": 1.0}, False),
    ({}, False),
  ),
)
def test_rope_scaling_is_read_as_by_llama_cpp(fields, scaled, tmp_path):
  """`llama_model::load_hparams`: the type is linear by default, and the factor has an old name."""
  net = hf_model("Llama", rope_parameters=LINEAR)
  plain = hf_model("Llama")  # the same weights
  path = write_gguf(tmp_path / "m.gguf", plain, "llama", fields=fields)
  tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 40), np.int32)
  cfg, params = load(path)
  expected, other = (hf_logits(n, tokens) for n in ((net, plain) if scaled else (plain, net)))
  np.testing.assert_allclose(our_logits(cfg, params, tokens), expected, atol=2e-5, rtol=0)
  assert np.abs(expected - other).max() > 0.01
  assert cfg.context == 64 * (4 if scaled else 1)


def test_a_head_beside_the_embedding_is_used(tmp_path):
  """Whether its values are those of the embedding or not: `output.weight` is the head."""
  net = hf_model("Llama")
  tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 40), np.int32)
  path = write_gguf(tmp_path / "m.gguf", net, "llama")
  assert not open_model(str(path)).config.tie_word_embeddings
  ours = our_logits(*load(path), tokens)
  np.testing.assert_allclose(ours, hf_logits(net, tokens), atol=2e-5, rtol=0)
  tied = write_gguf(tmp_path / "tied.gguf", net, "llama", drop=("output.weight",))
  assert np.abs(our_logits(*load(tied), tokens) - ours).max() > 0.1


def _cut(path):
  path.write_bytes(path.read_bytes()[:-4096])


def _no_magic(path):
  path.write_bytes(b"nope" + path.read_bytes()[4:])


def _header_only(path):
  path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("damage", (_cut, _no_magic, _header_only, lambda p: p.write_bytes(b"")))
def test_damaged_file(damage, tmp_path):
  path = write_gguf(tmp_path / "m.gguf", hf_model("Llama"), "llama")
  damage(path)
  with pytest.raises(UserError, match="m.gguf is not a complete GGUF file"):
    load(path)


def test_refusals(tmp_path):
  net, path = hf_model("Llama"), tmp_path / "m.gguf"

  def refused(message, arch="llama", **how):
    write_gguf(path, net, arch, **how)
    with pytest.raises(UserError, match=message) as e:
      load(path)
    assert "\n" not in str(e.value)

  refused("'gemma2' is not supported; llama, qwen2, qwen3 are .* safetensors", arch="gemma2")
  refused("rope scaling 'yarn' is not supported", add_rope_scaling_type=gguf.RopeScalingType.YARN)
  refused("rotated in part", add_rope_dimension_count=8)
  refused("different numbers of key/value heads", add_head_count_kv=[2, 1])
  refused("lacks model.layers.1.mlp.up_proj.weight", drop=["blk.1.ffn_up.weight"])
  biased = hf_model("Qwen2")
  write_gguf(path, biased, "llama")
  with pytest.raises(UserError, match=r"self_attn.\w_proj.bias and 3 more tensors, which a llama"):
    load(path)
  with pytest.raises(UserError, match="does not exist"):
    load(tmp_path / "other.gguf")
