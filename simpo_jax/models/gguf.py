"""Reads a GGUF file as a checkpoint with Hugging Face's names and layout.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. A matrix row is a sequence
of independently quantized blocks along the input axis, so only the blocks of the requested
slice are dequantized.
"""

import dataclasses
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import gguf
import numpy as np

from simpo_jax.arith import ceil_div
from simpo_jax.errors import UserError, one_line
from simpo_jax.models.config import ModelConfig, RopeScaling, rope_frequencies
from simpo_jax.models.gguf_header import check_header
from simpo_jax.models.hf_config import from_hf
from simpo_jax.models.safetensors import Index, Weights

_ARCHITECTURES = ("llama", "qwen2", "qwen3")  # llama.cpp's names; Mistral is "llama" as well
HF_NAMES = {
  "token_embd.weight": "model.embed_tokens.weight",
  "output_norm.weight": "model.norm.weight",
  "output.weight": "lm_head.weight",
}
HF_LAYER_NAMES = {
  "attn_norm": "input_layernorm",
  "attn_q": "self_attn.q_proj",
  "attn_k": "self_attn.k_proj",
  "attn_v": "self_attn.v_proj",
  "attn_output": "self_attn.o_proj",
  "attn_q_norm": "self_attn.q_norm",
  "attn_k_norm": "self_attn.k_norm",
  "ffn_norm": "post_attention_layernorm",
  "ffn_gate": "mlp.gate_proj",
  "ffn_up": "mlp.up_proj",
  "ffn_down": "mlp.down_proj",
}
_ROPE_FACTORS = "rope_freqs.weight"  # [h/2], by which llama.cpp divides the frequencies
_FACTOR_TOLERANCE = 1e-3


def open_gguf(path: pathlib.Path) -> tuple[ModelConfig, Weights]:
  """Opens a .gguf file; returns its config, and its tensors under Hugging Face names.

  Raises:
    UserError: the file is not a complete GGUF file, or its architecture, rope scaling or
      quantization is not supported.
  """
  try:
    check_header(path)
    reader = gguf.GGUFReader(path)
  except (ValueError, IndexError, KeyError, OverflowError, OSError) as e:
    raise UserError(f"{path} is not a complete GGUF file ({one_line(e)}); get it again") from e
  stored = {t.name: t for t in reader.tensors}
  factors = stored.pop(_ROPE_FACTORS, None)
  try:
    config = _config(reader, stored, path, None if factors is None else factors.data)
  # A field can have any type: a list of heads, a name that is not UTF-8.
  except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError) as e:
    raise UserError(f"{path}: its metadata are malformed ({one_line(e)}); get it again") from e
  tensors = {_hf_name(name): t for name, t in stored.items()}
  for name, t in tensors.items():
    if not _readable(t.tensor_type):
      raise UserError(
        f"{path}: {name} has type {t.tensor_type.name}, which cannot be dequantized; "
        "take another quantization of this model"
      )
  permuted: dict[str, int] = {}
  if _field(reader, "general.architecture") == "llama":
    for layer in range(config.num_hidden_layers):
      for which, heads in (("q", config.num_attention_heads), ("k", config.num_key_value_heads)):
        permuted[f"model.layers.{layer}.self_attn.{which}_proj.weight"] = heads

  def read(name: str, index: Index) -> np.ndarray:
    return _read(tensors[name], index, permuted.get(name))

  return config, Weights({n: tuple(t.shape[::-1].tolist()) for n, t in tensors.items()}, read)


def _read(tensor: gguf.ReaderTensor, index: Index, heads: int | None) -> np.ndarray:
  """Reads a slice of a 1-D or 2-D tensor as float.

  Args:
    heads: number of rotary heads, whose rows llama.cpp permutes; None for other tensors.
  """
  *rows, columns = index
  if heads is not None:
    # llama.cpp rotates adjacent channels; Hugging Face rotates the two halves of a head.
    order: np.ndarray = np.arange(len(tensor.data)).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)
    rows = [order[rows[0]]]
  if tensor.data.dtype != np.uint8:
    return np.array(tensor.data[(*rows, columns)])  # a copy: a view would keep the file mapped
  block, size = gguf.GGML_QUANT_SIZES[tensor.tensor_type]
  first, last = columns.start // block, ceil_div(columns.stop, block)
  data = tensor.data[(*rows, slice(first * size, last * size))]
  values = gguf.dequantize(data, tensor.tensor_type)
  return values[..., columns.start - first * block : columns.stop - first * block]


def _readable(kind: gguf.GGMLQuantizationType) -> bool:
  """Whether the gguf package can dequantize this type; tried on one block of zeros."""
  try:
    gguf.dequantize(np.zeros((1, gguf.GGML_QUANT_SIZES[kind][1]), np.uint8), kind)
  except NotImplementedError:
    return False
  return True


def _hf_name(name: str) -> str:
  """Converts a tensor name; unknown names are returned unchanged and later rejected."""
  match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", name)
  if match and match[2] in HF_LAYER_NAMES:
    return f"model.layers.{match[1]}.{HF_LAYER_NAMES[match[2]]}.{match[3]}"
  return HF_NAMES.get(name, name)


def _field(reader: gguf.GGUFReader, name: str, default: Any = None) -> Any:
  field = reader.get_field(name)
  return default if field is None else field.contents()


def _config(
  reader: gguf.GGUFReader,
  stored: Mapping[str, gguf.ReaderTensor],
  path: pathlib.Path,
  rope_factors: np.ndarray | None,
) -> ModelConfig:
  """Converts the metadata to the fields of a Hugging Face config.json, and parses these."""
  arch = _field(reader, "general.architecture")
  if (_field(reader, "split.count") or 1) > 1:
    raise UserError(f"{path} is one part of a model; join all with llama-gguf-split --merge")

  def get(name: str, default: Any = None) -> Any:
    return _field(reader, f"{arch}.{name}", default)

  heads, hidden = get("attention.head_count"), get("embedding_length")
  if arch not in _ARCHITECTURES or not isinstance(heads, int) or not isinstance(hidden, int):
    raise UserError(
      f"{path}: a GGUF of architecture {arch!r} is not supported; {', '.join(_ARCHITECTURES)} are "
      "(of gemma2, use the safetensors checkpoint)"
    )
  kv_heads = get("attention.head_count_kv", heads)
  if not isinstance(kv_heads, int):
    raise UserError(f"{path}: layers with different numbers of key/value heads are not supported")
  head_dim = get("attention.key_length", hidden // heads)
  if {get("attention.value_length", head_dim), get("rope.dimension_count", head_dim)} != {head_dim}:
    raise UserError(f"{path}: heads that are rotated in part, or differ in size, are not supported")
  window = get("attention.sliding_window") or None
  rope = _rope(get)
  embedding = stored.get("token_embd.weight")
  base: dict[str, Any] = {
    "model_type": "mistral" if arch == "llama" and window else arch,
    # Taken from the embedding, which can have more rows than the token list (padding).
    "vocab_size": get("vocab_size") if embedding is None else int(embedding.shape[-1]),
    "hidden_size": hidden,
    "intermediate_size": get("feed_forward_length"),
    "num_hidden_layers": get("block_count"),
    "num_attention_heads": heads,
    "num_key_value_heads": kv_heads,
    "head_dim": head_dim,
    "rms_norm_eps": get("attention.layer_norm_rms_epsilon"),
    "max_position_embeddings": get("context_length", 2048),
    "tie_word_embeddings": "output.weight" not in stored,
    "sliding_window": window,
    "use_sliding_window": window is not None,
  }
  config = from_hf({**base, "rope_parameters": rope}, str(path))
  if rope_factors is None:
    return config
  if config.rope_scaling is not None:  # llama.cpp applies both
    raise UserError(
      f"{path}: {_ROPE_FACTORS} beside linear rope scaling is not supported; "
      "use the safetensors checkpoint"
    )
  return from_hf({**base, "rope_parameters": _llama3(config, rope_factors, path)}, str(path))


def _rope(get: Callable[..., Any]) -> dict[str, Any]:
  """The rotary settings as llama.cpp reads them (`llama_model::load_hparams`).

  A factor without a type is linear, a factor of 0 is none, and scale_linear is its old name.

  Args:
    get: `get(name, default)` returns a field of the architecture.
  """
  factor = get("rope.scaling.factor", get("rope.scale_linear", 0.0)) or 1.0
  scaling = get("rope.scaling.type", "none" if factor == 1.0 else "linear")
  return {
    "rope_type": "default" if scaling == "none" else scaling,
    "rope_theta": get("rope.freq_base", 10000.0),
    "factor": factor,
  }


def _llama3(config: ModelConfig, factors: np.ndarray, path: pathlib.Path) -> dict[str, Any]:
  """Recovers Llama 3's rope scaling from a table of frequency factors.

  llama.cpp stores the result of Llama 3.1's rule instead of its parameters. In all released
  Llama 3 models these are the same except `factor`, the largest entry of the table. Checks
  that they reproduce the table.
  """
  rule = RopeScaling("llama3", float(np.clip(np.max(factors), 1.0, 1e6)), 1.0, 4.0, 8192)
  plain = dataclasses.replace(config, rope_scaling=None)
  scaled = dataclasses.replace(config, rope_scaling=rule)
  expected = rope_frequencies(plain) / rope_frequencies(scaled)
  if factors.shape != expected.shape or not _close(factors, expected):
    raise UserError(
      f"{path}: {_ROPE_FACTORS} is not Llama 3's rope scaling, and no other is supported; "
      "use the safetensors checkpoint"
    )
  return {
    "rope_type": "llama3",
    "rope_theta": config.rope_theta,
    "factor": rule.factor,
    "low_freq_factor": rule.low_freq_factor,
    "high_freq_factor": rule.high_freq_factor,
    "original_max_position_embeddings": rule.original_max_position_embeddings,
  }


def _close(factors: np.ndarray, expected: np.ndarray) -> bool:
  """Whether the factors are within tolerance; False for NaN."""
  return bool(np.all(np.abs(factors - expected) <= _FACTOR_TOLERANCE * expected))
