"""The architecture of a Llama-family model: sizes, switches, rotary frequencies."""

import dataclasses
import math

import numpy as np
from jaxtyping import Float32


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
  # Features of Gemma 2 that the Llama family does not have (arXiv:2408.00118).
  full_attention_every: int = 0  # every n-th layer ignores the sliding window; 0: no layer does
  hidden_act: str = "silu"  # activation of the MLP's gate: silu | gelu_pytorch_tanh
  post_norms: bool = False  # norms after attention and MLP, before the residual addition
  norm_plus_one: bool = False  # norms scale by 1 + weight
  scaled_embedding: bool = False  # embeddings are multiplied by sqrt(D)
  query_pre_attn_scalar: float | None = None  # scores are divided by its square root; None: h
  attn_logit_softcapping: float | None = None  # scores become cap * tanh(scores / cap)
  final_logit_softcapping: float | None = None  # the same for logits

  @property
  def context(self) -> int:
    """The most tokens of a sequence. Linear scaling divides positions, so that more of them fit."""
    scaling = self.rope_scaling
    stretch = scaling.factor if scaling and scaling.kind == "linear" else 1.0
    return int(self.max_position_embeddings * max(stretch, 1.0))

  @property
  def windows(self) -> tuple[int | None, ...]:
    """The sliding window of each layer, in tokens; None: the layer sees all tokens."""
    every, layers = self.full_attention_every, range(1, self.num_hidden_layers + 1)
    return tuple(None if every and i % every == 0 else self.sliding_window for i in layers)

  @property
  def query_scale(self) -> float:
    """Factor applied to queries before attention, which itself divides scores by sqrt(h)."""
    return math.sqrt(self.head_dim / (self.query_pre_attn_scalar or self.head_dim))

  @property
  def group(self) -> int:
    """Query heads per key/value head, H / K."""
    return self.num_attention_heads // self.num_key_value_heads


def rope_frequencies(cfg: ModelConfig) -> Float32[np.ndarray, " half"]:
  """Returns the rotary inverse frequencies, in radians per position, for half of the head dim.

  Llama 3.1's rule keeps high frequencies, divides low ones by `factor` and interpolates in
  between (The Llama 3 Herd of Models, arXiv:2407.21783).
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
  # The default model, small enough that configs/m11.py takes about a minute on two cores.
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
