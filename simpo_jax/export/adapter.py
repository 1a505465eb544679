"""Exports LoRA adapters in the format of the `peft` package, without a device program."""

import jax
import numpy as np
from safetensors.numpy import save

from simpo_jax import storage
from simpo_jax.models.config import ModelConfig
from simpo_jax.models.lora import Lora, all_tensors
from simpo_jax.workdir.files import write_json


def host_adapters(adapters: dict[str, jax.Array]) -> dict[str, np.ndarray]:
  """Gathers the adapters from the shards on this process's devices, which hold all of them."""

  def gather(x: jax.Array) -> np.ndarray:
    out = np.empty(x.shape, x.dtype)
    for shard in x.addressable_shards:
      out[shard.index] = np.asarray(shard.data)
    return out

  return jax.tree.map(gather, adapters)


def export_adapter(
  folder: storage.Path,
  adapters: dict[str, jax.Array],
  cfg: ModelConfig,
  lora: Lora,
  base: str | None,
) -> None:
  """Writes adapters for `peft.PeftModel.from_pretrained`; each file is written atomically.

  Args:
    folder: created if it does not exist.
    adapters: the "lora" part of the weights.
    base: the base model, a folder or hub id; None if it has random weights.
  """
  if not storage.is_remote(folder):
    folder.mkdir(parents=True, exist_ok=True)
  tensors = {}
  for name, value in host_adapters(adapters).items():
    tensor = all_tensors(cfg, lora)["lora"][name]
    for layer, matrix in enumerate(value):
      tensors[tensor.hf_name.format(layer)] = np.ascontiguousarray(matrix.T)
  storage.write(folder / "adapter_model.safetensors", save(tensors, metadata={"format": "pt"}))
  write_json(
    folder / "adapter_config.json",
    {
      "peft_type": "LORA",
      "task_type": "CAUSAL_LM",
      "base_model_name_or_path": base,
      "r": lora.rank,
      "lora_alpha": int(lora.alpha) if float(lora.alpha).is_integer() else lora.alpha,
      "target_modules": list(lora.targets),
      "lora_dropout": 0.0,
      "bias": "none",
      "fan_in_fan_out": False,
      "inference_mode": True,
    },
  )
