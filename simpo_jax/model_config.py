"""The architecture of a Llama-family model, read from a Hugging Face config.json."""

import dataclasses
import math
import reprlib
from typing import Any

import numpy as np

from simpo_jax.errors import UserError

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3", "gemma2")
_WINDOWED = ("mistral", "gemma2")
# What a config.json without these fields means, where it is not what it means for the others.
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
# No model comes near: a config beyond is damaged, or would take all memory to say no.
_MAX_SIZE = 2**31 - 1  # sizes are int32 on the devices
_MAX_LAYERS = 10_000
_MAX_HEAD_DIM = 2**16  # the rotary frequencies are that many numbers on the host
_MAX_FLOAT = 1e12


@dataclasses.dataclass(frozen=True)
class RopeScaling:
  """Frequency scaling of rotary embeddings: `linear`, or `llama3` (Llama 3.1, 3.2)."""

  kind: str
  factor: float
  low_freq_factor: float = 1.0
  high_freq_factor: float = 4.0
  original_max_position_embeddings: int = 8192


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Sizes and switches of the architecture, under their Hugging Face names."""

  model_type: str
  vocab_size: int  # V
  hidden_size: int  # D
  intermediate_size: int  # F
  num_hidden_layers: int  # L
  num_attention_heads: int  # H
  num_key_value_heads: int  # K
  head_dim: int  # h
  rms_norm_eps: float
  rope_theta: float
  rope_scaling: RopeScaling | None
  max_position_embeddings: int
  tie_word_embeddings: bool
  qkv_bias: bool
  qk_norm: bool
  sliding_window: int | None
  # What Gemma 2 has beside the Llama family (arXiv:2408.00118).
  full_attention_every: int = 0  # of windowed layers, every so many see all tokens; 0: none does
  hidden_act: str = "silu"  # of the MLP's gate; or "gelu_pytorch_tanh"
  post_norms: bool = False  # what attention and MLP give is normed before it is added
  norm_plus_one: bool = False  # norms scale by 1 + weight
  scaled_embedding: bool = False  # embeddings are multiplied by sqrt(D)
  query_pre_attn_scalar: float | None = None  # scores are divided by its root; None: h
  attn_logit_softcapping: float | None = None  # scores become cap * tanh(scores / cap)
  final_logit_softcapping: float | None = None  # logits, likewise

  @property
  def windows(self) -> tuple[int | None, ...]:
    """How many of the newest tokens each layer sees; None: all."""
    every, layers = self.full_attention_every, range(1, self.num_hidden_layers + 1)
    return tuple(None if every and i % every == 0 else self.sliding_window for i in layers)

  @property
  def query_scale(self) -> float:
    """What queries are multiplied by before attention, which divides scores by sqrt(h)."""
    return math.sqrt(self.head_dim / (self.query_pre_attn_scalar or self.head_dim))

  @property
  def group(self) -> int:
    """Query heads that share one key/value head, H / K."""
    return self.num_attention_heads // self.num_key_value_heads


def from_hf(hf: dict[str, Any], where: str = "config.json") -> ModelConfig:
  """Reads the fields of a Hugging Face config.json.

  Args:
    hf: the parsed JSON object.
    where: its path, for messages.

  Raises:
    UserError: an architecture, activation or rope scaling that is not supported,
      or a field that is missing.
  """
  kind = hf.get("model_type")
  if kind not in MODEL_TYPES:
    raise UserError(
      f"{where}: model_type {_shown(kind)} is not supported; {', '.join(MODEL_TYPES)} are"
    )
  hf = {**_DEFAULTS.get(kind, {}), **hf}

  def need(name):
    if hf.get(name) is None:
      raise UserError(f"{where}: field {name!r} is missing; is this the model's own config.json?")
    return hf[name]

  def whole(name, value, most=_MAX_SIZE):
    if type(value) is not int or not 1 <= value <= most:
      raise UserError(
        f"{where}: {name} is {_shown(value)}, and must be a whole number, 1 to {most}"
      )
    return value

  # Gemma's own configs have a hidden_act, too, which transformers passes over.
  name, known = ("hidden_act", "silu")
  if kind == "gemma2":
    name, known = ("hidden_activation", "gelu_pytorch_tanh")
  if hf.get(name, known) != known:
    raise UserError(f"{where}: {name} {_shown(hf[name])} is not supported; only {known} is")
  if hf.get("mlp_bias") or (hf.get("attention_bias") and kind != "qwen2"):
    raise UserError(f"{where}: attention_bias/mlp_bias with model_type {kind!r} is not supported")
  heads, hidden, layers, inner, vocab = (
    whole(name, need(name), most)
    for name, most in (
      ("num_attention_heads", _MAX_SIZE),
      ("hidden_size", _MAX_SIZE),
      ("num_hidden_layers", _MAX_LAYERS),
      ("intermediate_size", _MAX_SIZE),
      ("vocab_size", _MAX_SIZE),
    )
  )
  kv_heads = whole("num_key_value_heads", hf.get("num_key_value_heads") or heads)
  head_dim = whole("head_dim", hf.get("head_dim") or hidden // heads, _MAX_HEAD_DIM)
  if head_dim % 2:
    raise UserError(f"{where}: head_dim is {head_dim}, and must be even: halves are rotated")
  if heads % kv_heads:
    raise UserError(
      f"{where}: {heads} attention heads cannot share {kv_heads} key/value heads evenly"
    )
  # Qwen configs carry a window that `use_sliding_window` usually switches off.
  # Others without the field mean transformers' default, null means none.
  windowed = hf.get("use_sliding_window", kind in _WINDOWED)
  window = hf.get("sliding_window", 4096) if windowed else None
  if window is not None and kind not in _WINDOWED:
    raise UserError(
      f"{where}: use_sliding_window is supported for {', '.join(_WINDOWED)} only; set it to false"
    )
  # transformers 5 writes rope_parameters; earlier versions rope_theta and rope_scaling.
  rope = {
    "rope_theta": hf.get("rope_theta", 10000.0),
    **(hf.get("rope_scaling") or {}),
    **(hf.get("rope_parameters") or {}),
  }
  if rope.get("partial_rotary_factor", hf.get("partial_rotary_factor") or 1.0) != 1.0:
    raise UserError(f"{where}: partial_rotary_factor is not supported; whole heads are rotated")
  max_positions = whole("max_position_embeddings", hf.get("max_position_embeddings", 2048))
  rope.setdefault("original_max_position_embeddings", max_positions)
  return ModelConfig(
    model_type=kind,
    vocab_size=vocab,
    hidden_size=hidden,
    intermediate_size=inner,
    num_hidden_layers=layers,
    num_attention_heads=heads,
    num_key_value_heads=kv_heads,
    head_dim=head_dim,
    rms_norm_eps=_number(where, "rms_norm_eps", need("rms_norm_eps"), 1e-30),
    rope_theta=_number(where, "rope_theta", rope["rope_theta"], 1.0),
    rope_scaling=_rope_scaling(rope, where),
    max_position_embeddings=max_positions,
    tie_word_embeddings=bool(hf.get("tie_word_embeddings", False)),
    qkv_bias=kind == "qwen2",
    qk_norm=kind == "qwen3",
    sliding_window=None if window is None else whole("sliding_window", window),
    **(_gemma2(hf, layers, where) if kind == "gemma2" else {}),
  )


def _gemma2(hf: dict[str, Any], layers: int, where: str) -> dict[str, Any]:
  every = 2
  types = [
    "full_attention" if i % every == 0 else "sliding_attention" for i in range(1, layers + 1)
  ]
  if (hf.get("layer_types") or types) != types:
    raise UserError(f"{where}: layer_types must alternate, beginning with sliding_attention")
  if hf.get("use_bidirectional_attention"):
    raise UserError(
      f"{where}: use_bidirectional_attention is not supported; answers need causality"
    )
  caps = ("attn_logit_softcapping", "final_logit_softcapping")
  return dict(
    full_attention_every=every,
    hidden_act=hf["hidden_activation"],
    post_norms=True,
    norm_plus_one=True,
    scaled_embedding=True,
    query_pre_attn_scalar=_number(
      where, "query_pre_attn_scalar", hf["query_pre_attn_scalar"], 1e-6
    ),
    **{name: None if hf[name] is None else _number(where, name, hf[name], 1e-3) for name in caps},
  )


def _number(where: str, name: str, value: Any, least: float) -> float:
  # NaN compares as false.
  if type(value) not in (int, float) or not least <= value <= _MAX_FLOAT:
    raise UserError(
      f"{where}: {name} is {_shown(value)}, and must be a number, {least:g} to {_MAX_FLOAT:g}"
    )
  return float(value)


def _shown(value: Any) -> str:
  return reprlib.repr(value)


def _rope_scaling(rope: dict[str, Any], where: str) -> RopeScaling | None:
  kind = rope.get("rope_type", rope.get("type", "default"))

  def number(name, least):
    return _number(where, name, rope[name], least)

  try:
    if kind == "default":
      return None
    if kind == "linear":
      return RopeScaling("linear", number("factor", 1e-6))
    if kind == "llama3":
      low, high = number("low_freq_factor", 0.0), number("high_freq_factor", 0.0)
      if not low < high:
        raise UserError(f"{where}: low_freq_factor {low:g} must be below high_freq_factor {high:g}")
      original = int(number("original_max_position_embeddings", 1.0))
      return RopeScaling("llama3", number("factor", 1e-6), low, high, original)
  except KeyError as e:
    raise UserError(f"{where}: {kind} rope scaling lacks {e}; add it to the rope settings") from e
  raise UserError(
    f"{where}: rope scaling {_shown(kind)} is not supported; default, linear and llama3 are"
  )


def rope_frequencies(cfg: ModelConfig) -> np.ndarray:
  """Rotary inverse frequencies, float32 `[h/2]`, radians per position.

  Llama 3.1's rule keeps short wavelengths, divides long ones by `factor` and
  blends in between (Llama 3 herd of models, arXiv:2407.21783).
  """
  freq = cfg.rope_theta ** -(np.arange(0, cfg.head_dim, 2, dtype=np.float64) / cfg.head_dim)
  scaling = cfg.rope_scaling
  if scaling is None:
    return freq.astype(np.float32)
  if scaling.kind == "linear":
    return (freq / scaling.factor).astype(np.float32)
  wavelength = 2 * math.pi / freq
  original = scaling.original_max_position_embeddings
  low, high = scaling.low_freq_factor, scaling.high_freq_factor
  kept = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
  return (kept * freq + (1 - kept) * freq / scaling.factor).astype(np.float32)


EMBEDDED = ModelConfig(
  # The embedded default: small enough that M11 takes about a minute on two cores.
  model_type="llama",
  vocab_size=262,
  hidden_size=64,
  intermediate_size=192,
  num_hidden_layers=2,
  num_attention_heads=4,
  num_key_value_heads=1,
  head_dim=16,
  rms_norm_eps=1e-5,
  rope_theta=10000.0,
  rope_scaling=None,
  max_position_embeddings=4096,
  tie_word_embeddings=True,
  qkv_bias=False,
  qk_norm=False,
  sliding_window=None,
)
