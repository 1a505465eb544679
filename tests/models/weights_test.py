"""What a user sees when a checkpoint is not what it should be."""

import json

import huggingface_hub
import numpy as np
import pytest
import transformers
from safetensors.numpy import load_file, save_file

from simpo_jax.errors import UserError
from simpo_jax.models import weights
from support.hf_models import hf_model, load

GEMMA2 = {"model_type": "gemma2"}
UP = "model.layers.1.mlp.up_proj.weight"


def refused(source, *parts):
  """One line, which holds all `parts`."""
  with pytest.raises(UserError) as e:
    weights.open_model(str(source))
  assert "\n" not in str(e.value)
  for part in parts:
    assert part in str(e.value), str(e.value)


def change_tensors(folder, **changes):
  path = folder / "model.safetensors"
  stored = load_file(path)
  for name, change in changes.items():
    name = name.replace("__", ".")
    value = change(stored.pop(name, None))
    if value is not None:
      stored[name] = np.ascontiguousarray(value)
  save_file(stored, path)


def change_config(folder, **changes):
  path = folder / "config.json"
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_tensors_must_be_those_of_the_config(folder):
  change_tensors(folder, **{UP: lambda w: w[:-1]})
  refused(folder, UP, "(95, 64)", "(96, 64)")
  change_tensors(folder, **{UP: lambda w: None})
  refused(folder, f"lacks {UP}")
  change_config(folder, num_hidden_layers=9)
  refused(folder, "lacks", "and 61 more tensors")


def test_unknown_tensors(folder):
  change_tensors(folder, model__layers__0__mlp__up_proj__lora_A=lambda _: np.zeros((4, 64)))
  refused(folder, "holds model.layers.0.mlp.up_proj.lora_A", "merged")


def test_harmless_tensors(folder):
  name = "model__layers__0__self_attn__rotary_emb__inv_freq"
  change_tensors(folder, **{name: lambda _: np.zeros(8)})
  load(folder)


def test_tying_is_off_unless_the_config_says_so(folder):
  config = json.loads((folder / "config.json").read_text())
  del config["tie_word_embeddings"]
  (folder / "config.json").write_text(json.dumps(config))
  assert not load(folder)[0].tie_word_embeddings
  change_tensors(folder, lm_head__weight=lambda w: None)
  refused(folder, "lacks lm_head.weight")


def test_quantized_tensors(folder):
  change_tensors(folder, **{UP: lambda w: w.astype(np.int8)})
  refused(folder, UP, "I8", "unquantized")
  change_config(folder, quantization_config={"quant_method": "bitsandbytes"})
  refused(folder, UP, "I8", "its config names the quantization bitsandbytes", "unquantized")


@pytest.mark.parametrize(
  "changes,parts",
  (
    ({"model_type": "gemma3"}, ("model_type 'gemma3' is not supported", "qwen3")),
    (
      {**GEMMA2, "hidden_activation": "gelu"},
      ("hidden_activation 'gelu'", "only gelu_pytorch_tanh"),
    ),
    ({**GEMMA2, "layer_types": ["full_attention"] * 2}, ("layer_types must alternate",)),
    ({**GEMMA2, "use_bidirectional_attention": True}, ("use_bidirectional_attention",)),
    ({**GEMMA2, "attn_logit_softcapping": 0}, ("attn_logit_softcapping is 0", "0.001")),
    ({**GEMMA2, "final_logit_softcapping": "30"}, ("final_logit_softcapping is '30'",)),
    ({**GEMMA2, "query_pre_attn_scalar": None}, ("query_pre_attn_scalar is None",)),
    ({"model_type": None}, ("model_type None",)),
    ({"hidden_act": "gelu"}, ("hidden_act 'gelu'",)),
    ({"attention_bias": True}, ("attention_bias",)),
    ({"hidden_size": None}, ("field 'hidden_size' is missing",)),
    ({"num_key_value_heads": 3}, ("4 attention heads cannot share 3",)),
    ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, ("rope scaling 'yarn'",)),
    ({"rope_parameters": None, "rope_scaling": {"type": "dynamic"}}, ("rope scaling 'dynamic'",)),
    ({"rope_parameters": {"rope_type": "llama3", "factor": 8.0}}, ("lacks 'low_freq_factor'",)),
    ({"rope_parameters": {"partial_rotary_factor": 0.5}}, ("partial_rotary_factor",)),
    (
      {"rope_parameters": {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {}}},
      ("by the kind of layer (full_attention, sliding_attention) are not supported",),
    ),
    (
      {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 64},
      ("use_sliding_window", "set it to false"),
    ),
  ),
)
def test_unsupported_config(folder, changes, parts):
  change_config(folder, **changes)
  refused(folder, "config.json", *parts)
  refused(f"random:{folder}", "config.json", *parts)


def test_mistral_window_default(folder):
  config = json.loads((folder / "config.json").read_text()) | {"model_type": "mistral"}
  windows = []
  off = {"use_sliding_window": False}
  for extra in ({}, {"sliding_window": None}, {"sliding_window": 7}, {"sliding_window": 7, **off}):
    (folder / "config.json").write_text(json.dumps(config | extra))
    opened = weights.open_model(f"random:{folder}")
    windows.append(opened.config.sliding_window)
    theirs = transformers.AutoConfig.from_pretrained(folder)
    assert theirs.sliding_window == windows[-1]
    assert any("use_sliding_window" in note for note in opened.notes) == (
      off.items() <= extra.items()
    )
  assert windows == [4096, None, 7, 7]


def test_gemma2_defaults_are_those_of_transformers(folder):
  path = folder / "config.json"
  sizes = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")
  heads = ("num_attention_heads", "num_key_value_heads", "rms_norm_eps")
  stored = json.loads(path.read_text())
  path.write_text(json.dumps(GEMMA2 | {name: stored[name] for name in (*sizes, *heads)}))
  ours = weights.open_model(f"random:{folder}").config
  theirs = transformers.Gemma2Config(**{name: stored[name] for name in sizes})
  for name in (
    "head_dim",
    "tie_word_embeddings",
    "sliding_window",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
  ):
    assert getattr(ours, name) == getattr(theirs, name), name
  windowed = [kind == "sliding_attention" for kind in theirs.layer_types or ()]
  assert [window is not None for window in ours.windows] == windowed == [True, False]
  for off in ("sliding_window", "attn_logit_softcapping", "final_logit_softcapping"):
    change_config(folder, **{off: None})
    assert getattr(weights.open_model(f"random:{folder}").config, off) is None


def test_missing_places(folder, tmp_path):
  refused(tmp_path / "nowhere", "nowhere does not exist")
  refused("./nowhere", "./nowhere does not exist")
  refused("embeded", "embeded does not exist", "embedded")
  refused(f"random:{tmp_path}/nowhere", "nowhere does not exist")
  refused(tmp_path / "model.gguf", "model.gguf does not exist")
  refused(folder / "config.json", "neither a folder nor a .gguf file")
  (folder / "config.json").write_text("{")
  refused(folder, "is not a model's config")
  (folder / "config.json").write_text("[1]")
  refused(folder, "is not a model's config")
  refused(f"random:{folder / 'config.json'}", "config.json is not a folder")
  (folder / "config.json").unlink()
  refused(folder, "holds no config.json")
  (folder / "model.gguf").write_bytes(b"")
  refused(folder, "holds GGUF files", str(folder / "model.gguf"))


def test_hub_failure(monkeypatch):
  def offline(name, **_):
    raise huggingface_hub.errors.LocalEntryNotFoundError("several\nlines")

  monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
  refused("nobody/nothing", "no folder nobody/nothing", "check the name", "hf download nobody")


def test_hub_id(folder, monkeypatch):
  monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **_: str(folder))
  opened = weights.open_model("somebody/llama")
  assert (opened.name, opened.path) == ("somebody/llama", folder)


def test_other_weight_files(folder):
  (folder / "model.safetensors").rename(folder / "consolidated.safetensors")
  refused(folder, "holds neither model.safetensors nor model.safetensors.index.json")
  (folder / "pytorch_model.bin").write_bytes(b"")
  refused(folder, "pickle files, which are not read", "save_pretrained")


@pytest.mark.parametrize("keep", (-1000, 1000, 4, 0))
def test_truncated_safetensors(folder, keep):
  path = folder / "model.safetensors"
  path.write_bytes(path.read_bytes()[:keep])
  refused(folder, "model.safetensors is damaged or cut short", "get it again")


def test_sharded_index(tmp_path):
  hf_model("Llama").save_pretrained(tmp_path, max_shard_size="60KB")
  index = tmp_path / "model.safetensors.index.json"
  missing = tmp_path / json.loads(index.read_text())["weight_map"][UP]
  missing.unlink()
  refused(tmp_path, f"lacks {missing.name}", "download it too")
  index.write_text("[]")
  refused(tmp_path, "is not a safetensors index")


def test_negative_seed():
  with pytest.raises(UserError, match="seed=-1"):
    weights.load_params(weights.open_model("embedded"), {}, "float32", -1)
