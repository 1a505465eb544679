"""Models with adapters that the `peft` package made."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file

from simpo_jax.models import lora as adapters
from simpo_jax.models.lora import Lora, merged_matrix
from simpo_jax.models.weights import open_model
from simpo_jax.settings.train import LORA_TARGETS
from support.hf_models import hf_model

ALL = Lora(4, 6.0, LORA_TARGETS)
LORA_MODELS = {
  "llama_all": ("Llama", ALL),
  "qwen2_some": ("Qwen2", Lora(3, 16.0, ("q_proj", "v_proj", "down_proj"))),
}


def peft_model(kind, lora):
  """A model with adapters of peft's making, both factors random."""
  torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
  settings = peft.LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets))
  net = peft.get_peft_model(hf_model(kind), settings).eval()
  generator = torch.Generator().manual_seed(1)
  with torch.no_grad():
    for name, p in net.named_parameters():
      if "lora_" in name:
        p.normal_(std=0.3, generator=generator)
  return net


def adapters_of_peft(net, cfg, lora):
  """Its adapters in our tree."""
  state = pytest.importorskip("peft").get_peft_model_state_dict(net)
  table = adapters.all_tensors(cfg, lora)["lora"]
  assert len(state) == len(table) * cfg.num_hidden_layers
  return {
    name: np.stack([state[t.hf_name.format(i)].numpy().T for i in range(cfg.num_hidden_layers)])
    for name, t in table.items()
  }


def merged_weights(params, lora):
  """The weights alone with the adapters in them, in their own dtype; numpy, layer by layer.

  Args:
    params: weights and adapters in the tree of `all_tensors`, numpy.
  """
  layers = dict(params["layers"])
  for name in lora.matrices:
    a, b = (params["lora"][f"{name}_lora_{part}"] for part in "ab")
    each = [merged_matrix(*one, lora) for one in zip(layers[name], a, b, strict=True)]
    layers[name] = np.stack(each).astype(layers[name].dtype)
  return {**{name: part for name, part in params.items() if name != "lora"}, "layers": layers}


def save_adapter(folder, base, lora=ALL, layers=(0, 1), **changes):
  """An adapter's folder as the peft package writes it, both factors random; without peft."""
  cfg, rng, tensors = open_model(str(base)).config, np.random.default_rng(1), {}
  for tensor in adapters.all_tensors(cfg, lora)["lora"].values():
    for layer in layers:
      value = rng.normal(size=tensor.shape[:0:-1]).astype(np.float32) * 0.15
      tensors[tensor.hf_name.format(layer)] = value
  folder.mkdir(exist_ok=True)
  save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
  config = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": str(base),
    "r": lora.rank,
    "lora_alpha": lora.alpha,
    "target_modules": list(lora.targets),
    "bias": "none",
  }
  (folder / "adapter_config.json").write_text(json.dumps(config | changes))
  return folder
