"""Parses Hugging Face config.json files into a `ModelConfig`."""

import reprlib
from typing import Any, NamedTuple

from simpo_jax.errors import UserError
from simpo_jax.models.config import ModelConfig, RopeScaling

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma2")
_WINDOWED = ("mistral", "gemma2")
# transformers', MLX's and compressed-tensors' own; they hold for quantized weights only.
QUANTIZATION_FIELDS = ("quantization_config", "quantization", "compression_config")
# transformers' defaults for missing fields, where they differ from those of other model types.
_DEFAULTS = {
  "gemma2": {
    "head_dim": 256,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu_pytorch_tanh",
    "query_pre_attn_scalar": 256,
    "attn_logit_softcapping": 50.0,
    "final_logit_softcapping": 30.0,
  },
}
# Limits far beyond any real model, so that a damaged config fails here instead of by running
# out of memory.
_MAX_SIZE = 2**31 - 1  # sizes are int32 on the devices
_MAX_LAYERS = 10_000
_MAX_HEAD_DIM = 2**16  # the host computes rotary frequencies of this size
_MAX_FLOAT = 1e12


def from_hf(hf: dict[str, Any], where: str = "config.json") -> ModelConfig:
  """Converts a Hugging Face config.json to a `ModelConfig`.

  Args:
    hf: the parsed JSON object.
    where: its path, for error messages.

  Raises:
    UserError: the architecture, activation or rope scaling is not supported, or a field is
      missing or invalid.
  """
  kind = hf.get("model_type")
  if kind not in MODEL_TYPES:
    raise UserError(
      f"{where}: model_type {_shown(kind)} is not supported; {', '.join(MODEL_TYPES)} are"
    )
  fields = _Fields({**_DEFAULTS.get(kind, {}), **hf}, where)
  _check_layers(fields, kind)
  layers = fields.size("num_hidden_layers", _MAX_LAYERS)
  rope = _rope(fields)
  return ModelConfig(
    model_type=kind,
    vocab_size=fields.size("vocab_size"),
    num_hidden_layers=layers,
    intermediate_size=fields.size("intermediate_size"),
    **_heads(fields),
    rms_norm_eps=fields.number("rms_norm_eps", fields.need("rms_norm_eps"), 1e-30),
    rope_theta=fields.number("rope_theta", rope["rope_theta"], 1.0),
    rope_scaling=_rope_scaling(fields, rope),
    max_position_embeddings=_max_positions(fields),
    tie_word_embeddings=bool(fields.hf.get("tie_word_embeddings", False)),
    qkv_bias=kind == "qwen2",
    qk_norm=kind == "qwen3",
    sliding_window=_window(fields, kind),
    **(_gemma2(fields, layers) if kind == "gemma2" else {}),
  )


def config_notes(hf: dict[str, Any]) -> list[str]:
  """Returns what a valid config.json says and `from_hf` does not do, for the user."""
  notes: list[str] = []
  if hf["model_type"] in _WINDOWED and hf.get("sliding_window", 4096):
    if not hf.get("use_sliding_window", True):
      notes.append(
        f"its use_sliding_window=false has no effect for {hf['model_type']}, as in transformers; "
        "set sliding_window to null to see all tokens"
      )
  scaling, parameters = hf.get("rope_scaling"), hf.get("rope_parameters")
  if scaling and parameters and scaling != parameters:
    notes.append("its rope_scaling replaces its rope_parameters, as in transformers")
  return notes


def quantization_of(hf: dict[str, Any]) -> str | None:
  """Returns the method that a config.json's weights are, or were, quantized by; None: by none."""
  for name in QUANTIZATION_FIELDS:
    if found := hf.get(name):
      return str(found.get("quant_method", name)) if hasattr(found, "get") else name
  return None


class _Fields(NamedTuple):
  """The fields of a config.json including defaults, and its path for error messages."""

  hf: dict[str, Any]
  where: str

  def error(self, text: str) -> UserError:
    return UserError(f"{self.where}: {text}")

  def need(self, name: str) -> Any:
    if self.hf.get(name) is None:
      raise self.error(f"field {name!r} is missing; is this the model's own config.json?")
    return self.hf[name]

  def size(self, name: str, most: int = _MAX_SIZE) -> int:
    return self.integer(name, self.need(name), most)

  def integer(self, name: str, value: Any, most: int = _MAX_SIZE) -> int:
    if type(value) is not int or not 1 <= value <= most:
      raise self.error(f"{name} is {_shown(value)}, and must be a whole number, 1 to {most}")
    return value

  def number(self, name: str, value: Any, least: float) -> float:
    # Written so that NaN fails.
    if type(value) not in (int, float) or not least <= value <= _MAX_FLOAT:
      raise self.error(
        f"{name} is {_shown(value)}, and must be a number, {least:g} to {_MAX_FLOAT:g}"
      )
    return float(value)


def _check_layers(fields: _Fields, kind: str) -> None:
  """Checks that activation and biases are those of the model family."""
  hf = fields.hf
  # Gemma's configs also have a hidden_act, which transformers ignores.
  name, known = ("hidden_act", "silu")
  if kind == "gemma2":
    name, known = ("hidden_activation", "gelu_pytorch_tanh")
  if hf.get(name, known) != known:
    raise fields.error(f"{name} {_shown(hf[name])} is not supported; only {known} is")
  if hf.get("mlp_bias") or (hf.get("attention_bias") and kind != "qwen2"):
    raise fields.error(f"attention_bias/mlp_bias with model_type {kind!r} is not supported")


def _heads(fields: _Fields) -> dict[str, int]:
  heads, hidden = fields.size("num_attention_heads"), fields.size("hidden_size")
  kv_heads = fields.integer("num_key_value_heads", fields.hf.get("num_key_value_heads") or heads)
  head_dim = fields.hf.get("head_dim") or hidden // heads
  head_dim = fields.integer("head_dim", head_dim, _MAX_HEAD_DIM)
  if head_dim % 2:
    raise fields.error(f"head_dim is {head_dim}, and must be even: halves are rotated")
  if heads % kv_heads:
    raise fields.error(f"{heads} attention heads cannot share {kv_heads} key/value heads evenly")
  return dict(
    hidden_size=hidden, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=head_dim
  )


def _window(fields: _Fields, kind: str) -> int | None:
  # Qwen configs have a window that `use_sliding_window` usually disables; transformers reads that
  # field for no other model. A missing window means its default of 4096, and null means none.
  windowed = kind in _WINDOWED or fields.hf.get("use_sliding_window", False)
  window = fields.hf.get("sliding_window", 4096) if windowed else None
  if window is None:
    return None
  if kind not in _WINDOWED:
    raise fields.error(
      f"use_sliding_window is supported for {', '.join(_WINDOWED)} only; set it to false"
    )
  return fields.integer("sliding_window", window)


def _max_positions(fields: _Fields) -> int:
  name = "max_position_embeddings"
  return fields.integer(name, fields.hf.get(name, 2048))


def _rope(fields: _Fields) -> dict[str, Any]:
  """The settings of rotary embeddings, under the names of transformers 5.

  It writes rope_parameters; earlier versions rope_theta and rope_scaling. Precedence is that of
  `RotaryEmbeddingConfigMixin` in transformers: a rope_scaling replaces rope_parameters, and the
  length before scaling is the config's own field first.
  """
  hf, original = fields.hf, "original_max_position_embeddings"
  rope: dict[str, Any] = hf.get("rope_scaling") or hf.get("rope_parameters") or {}
  if nested := [name for name, part in rope.items() if isinstance(part, dict)]:
    raise fields.error(
      f"rope settings by the kind of layer ({', '.join(nested)}) are not supported; "
      "only one setting for all layers is"
    )
  if rope.get("partial_rotary_factor", hf.get("partial_rotary_factor") or 1.0) != 1.0:
    raise fields.error("partial_rotary_factor is not supported; whole heads are rotated")
  return {
    "rope_theta": hf.get("rope_theta", 10000.0),
    original: _max_positions(fields),
    **rope,
    **({original: hf[original]} if original in hf else {}),
  }


def _gemma2(fields: _Fields, layers: int) -> dict[str, Any]:
  every, hf = 2, fields.hf
  types = [
    "full_attention" if i % every == 0 else "sliding_attention" for i in range(1, layers + 1)
  ]
  if (hf.get("layer_types") or types) != types:
    raise fields.error("layer_types must alternate, beginning with sliding_attention")
  if hf.get("use_bidirectional_attention"):
    raise fields.error("use_bidirectional_attention is not supported; answers need causality")
  scale = "query_pre_attn_scalar"
  caps = ("attn_logit_softcapping", "final_logit_softcapping")
  return dict(
    full_attention_every=every,
    hidden_act=hf["hidden_activation"],
    post_norms=True,
    norm_plus_one=True,
    scaled_embedding=True,
    query_pre_attn_scalar=fields.number(scale, hf[scale], 1e-6),
    **{name: None if hf[name] is None else fields.number(name, hf[name], 1e-3) for name in caps},
  )


def _shown(value: Any) -> str:
  return reprlib.repr(value)


def _rope_scaling(fields: _Fields, rope: dict[str, Any]) -> RopeScaling | None:
  kind = rope.get("rope_type", rope.get("type", "default"))

  def number(name: str, least: float) -> float:
    return fields.number(name, rope[name], least)

  try:
    if kind == "default":
      return None
    if kind == "linear":
      return RopeScaling("linear", number("factor", 1e-6))
    if kind == "llama3":
      low, high = number("low_freq_factor", 0.0), number("high_freq_factor", 0.0)
      if not low < high:
        raise fields.error(f"low_freq_factor {low:g} must be below high_freq_factor {high:g}")
      original = int(number("original_max_position_embeddings", 1.0))
      return RopeScaling("llama3", number("factor", 1e-6), low, high, original)
  except KeyError as e:
    raise fields.error(f"{kind} rope scaling lacks {e}; add it to the rope settings") from e
  raise fields.error(
    f"rope scaling {_shown(kind)} is not supported; default, linear and llama3 are"
  )
