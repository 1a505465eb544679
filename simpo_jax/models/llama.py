"""The Llama family, Gemma 2 included, as pure functions on a dict of arrays.

Dimension letters, here and in every shape comment of the project:
  B batch rows, T query length, S key length, D model, H query heads,
  K key/value heads, G query heads per key/value head, h head dim, F ffn, V vocab,
  L layers, P pages, N requests.

`tensors(cfg)` declares every weight once: shape, logical axes, initializer and
Hugging Face name. Abstract values, shardings, initialization, import and export
are all derived from it. Matrices are 2-D per layer (`[L, D, H*h]`), because the TPU
compiler pads and re-lays out a 4-D form with few heads.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int32

from simpo_jax.models.config import ModelConfig, rope_frequencies
from simpo_jax.models.linear import matmul, rms_norm

Params = dict[str, Any]
Query = Float[Array, "B T H h"]
KeyValue = Float[Array, "B T K h"]
Angles = tuple[Float32[Array, "B T 1 half"], Float32[Array, "B T 1 half"]]  # cos, sin
Carry = TypeVar("Carry")
# attend(q, k, v) -> (out, carry, such as the updated KV pool)
Attend = Callable[[Query, KeyValue, KeyValue], tuple[Query, Carry]]
# The same for a stack of layers: the last argument is the layer's sliding window.
WindowedAttend = Callable[[Query, KeyValue, KeyValue, Array | None], tuple[Query, Any]]
_ScannedLayer = Callable[[Array, tuple[Params, Array | None]], tuple[Array, None]]
_ACTIVATIONS = {
  "silu": jax.nn.silu,
  "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
}


@dataclasses.dataclass(frozen=True)
class Tensor:
  """One weight: its shape, the logical name of each axis, its initializer and HF name."""

  shape: tuple[int, ...]
  axes: tuple[str, ...]
  hf_name: str  # with {} for the layer, if stacked
  transposed: bool = False  # Hugging Face stores linear weights as [out, in]
  init: str = "normal"  # normal | ones | zeros | uniform
  adapter: bool = False  # a LoRA factor (`lora.py`): float32, and not in the model's checkpoint

  @property
  def stacked(self) -> bool:
    return self.axes[0] == "layers"

  @property
  def is_matrix(self) -> bool:
    """Whether it is a matrix (per layer); norms and biases are not."""
    return len(self.axes) - self.stacked == 2


def tensors(cfg: ModelConfig) -> dict[str, Any]:
  """Returns the declaration of every weight, as a pytree of `Tensor`."""
  D, F, V, L = cfg.hidden_size, cfg.intermediate_size, cfg.vocab_size, cfg.num_hidden_layers
  Hh, Kh = cfg.num_attention_heads * cfg.head_dim, cfg.num_key_value_heads * cfg.head_dim

  one = "zeros" if cfg.norm_plus_one else "ones"  # norms initially scale by 1

  def norm(name: str, width: int = D) -> Tensor:
    return Tensor((L, width), ("layers", "norm"), f"model.layers.{{}}.{name}.weight", init=one)

  def linear(name: str, n_in: int, n_out: int, axes: tuple[str, str]) -> Tensor:
    return Tensor((L, n_in, n_out), ("layers", *axes), f"model.layers.{{}}.{name}.weight", True)

  def bias(name: str, width: int, axis: str) -> Tensor:
    return Tensor((L, width), ("layers", axis), f"model.layers.{{}}.{name}.bias", init="zeros")

  layers = {
    "attn_norm": norm("input_layernorm"),
    "q": linear("self_attn.q_proj", D, Hh, ("embed", "heads")),
    "k": linear("self_attn.k_proj", D, Kh, ("embed", "kv_heads")),
    "v": linear("self_attn.v_proj", D, Kh, ("embed", "kv_heads")),
    "o": linear("self_attn.o_proj", Hh, D, ("heads", "embed")),
    "mlp_norm": norm("post_attention_layernorm"),
    "gate": linear("mlp.gate_proj", D, F, ("embed", "ffn")),
    "up": linear("mlp.up_proj", D, F, ("embed", "ffn")),
    "down": linear("mlp.down_proj", F, D, ("ffn", "embed")),
  }
  if cfg.qkv_bias:
    layers["q_bias"] = bias("self_attn.q_proj", Hh, "heads")
    layers["k_bias"] = bias("self_attn.k_proj", Kh, "kv_heads")
    layers["v_bias"] = bias("self_attn.v_proj", Kh, "kv_heads")
  if cfg.qk_norm:
    layers["q_norm"] = norm("self_attn.q_norm", cfg.head_dim)
    layers["k_norm"] = norm("self_attn.k_norm", cfg.head_dim)
  if cfg.post_norms:
    layers["attn_post_norm"] = norm("post_attention_layernorm")
    layers["mlp_norm"] = norm("pre_feedforward_layernorm")
    layers["mlp_post_norm"] = norm("post_feedforward_layernorm")
  table = {
    "embed": Tensor((V, D), ("vocab", "embed"), "model.embed_tokens.weight"),
    "layers": layers,
    "final_norm": Tensor((D,), ("norm",), "model.norm.weight", init=one),
  }
  if not cfg.tie_word_embeddings:
    table["lm_head"] = Tensor((V, D), ("vocab", "embed"), "lm_head.weight")
  return table


def abstract_params(cfg: ModelConfig, dtype: DTypeLike) -> Params:
  """Returns the shapes and dtypes of the weights."""

  def abstract(tensor: Tensor) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tensor.shape, dtype)

  return jax.tree.map(abstract, tensors(cfg))


def count_params(cfg: ModelConfig) -> int:
  """Returns the number of weights; tied embeddings count once."""
  return sum(x.size for x in jax.tree.leaves(abstract_params(cfg, jnp.float32)))


def rope_angles(positions: Int32[Array, "B T"], cfg: ModelConfig) -> Angles:
  """Returns cos and sin of the rotary angles at `positions` (RoPE, arXiv:2104.09864)."""
  angles = positions[..., None, None].astype(jnp.float32) * rope_frequencies(cfg)
  return jnp.cos(angles), jnp.sin(angles)


def rope(
  x: Float[Array, "B T heads h"],
  cos: Float32[Array, "B T 1 h//2"],
  sin: Float32[Array, "B T 1 h//2"],
) -> Float[Array, "B T heads h"]:
  """Applies rotary embeddings to each head of `x`, pairing halves as Hugging Face does."""
  a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def norm(
  x: Float[Array, "... width"], weight: Float[Array, " width"], cfg: ModelConfig
) -> Float[Array, "... width"]:
  """Applies the model's RMS norm over the last axis, computed in float32."""
  scale = 1.0 + weight.astype(jnp.float32) if cfg.norm_plus_one else weight
  return rms_norm(x, scale, cfg.rms_norm_eps)


def soft_cap(x: Float[Array, "..."], cap: float | None) -> Float[Array, "..."]:
  """Returns cap * tanh(x / cap), or x if `cap` is None (Gemma 2, arXiv:2408.00118)."""
  return x if cap is None else cap * jnp.tanh(x / cap)


def linear(p: Params, name: str, x: Float[Array, "B T inputs"]) -> Float[Array, "B T outputs"]:
  """Returns x W, plus (x A) B if the weight has an adapter; B includes LoRA's scale."""
  y = matmul(x, p[name])
  if f"{name}_lora_a" in p:
    y = y + matmul(matmul(x, p[f"{name}_lora_a"]), p[f"{name}_lora_b"])
  return y


def layer(
  p: Params,
  x: Float[Array, "B T D"],
  angles: Angles,
  attend: Attend[Carry],
  cfg: ModelConfig,
  all_reduce: Callable[[Array], Array] = lambda x: x,
) -> tuple[Float[Array, "B T D"], Carry]:
  """One transformer layer, shared by training and paged decoding.

  Args:
    p: the layer's weights, possibly only a tensor-parallel shard of heads and MLP channels.
    x: hidden states.
    angles: from `rope_angles`.
    attend: attention, closed over its mask or its cache.
    all_reduce: sums over the devices that hold the other heads and channels.

  Returns:
    The new hidden states, and the carry of `attend` (the KV pool, or None).
  """
  B, T, _ = x.shape
  with jax.named_scope("attention"):
    y = norm(x, p["attn_norm"], cfg)
    q, k, v = (linear(p, name, y) for name in ("q", "k", "v"))
    if cfg.qkv_bias:
      q, k, v = q + p["q_bias"], k + p["k_bias"], v + p["v_bias"]
    q, k, v = (y.reshape(B, T, -1, cfg.head_dim) for y in (q, k, v))
    if cfg.qk_norm:
      q, k = norm(q, p["q_norm"], cfg), norm(k, p["k_norm"], cfg)
    # The rotation is computed in float32: scaling its angles adds no rounding.
    scaled = angles if cfg.query_scale == 1.0 else [a * cfg.query_scale for a in angles]
    out, carry = attend(rope(q, *scaled), rope(k, *angles), v)
    y = all_reduce(linear(p, "o", out.reshape(B, T, -1)))
    x = x + (norm(y, p["attn_post_norm"], cfg) if cfg.post_norms else y)
  with jax.named_scope("mlp"):
    y = norm(x, p["mlp_norm"], cfg)
    y = _ACTIVATIONS[cfg.hidden_act](linear(p, "gate", y)) * linear(p, "up", y)
    y = all_reduce(linear(p, "down", y))
    x = x + (norm(y, p["mlp_post_norm"], cfg) if cfg.post_norms else y)
  return x, carry


def embed(
  params: Params, tokens: Int32[Array, "B T"], dtype: DTypeLike, cfg: ModelConfig
) -> Float[Array, "B T D"]:
  """Looks up token embeddings in `dtype`, scaled for the first layer."""
  return scale_embeddings(params["embed"][tokens].astype(dtype), cfg)


def scale_embeddings(x: Float[Array, "... D"], cfg: ModelConfig) -> Float[Array, "... D"]:
  """Multiplies token embeddings by sqrt(D) if the model does so."""
  if not cfg.scaled_embedding:
    return x
  # Gemma was trained with the square root rounded to the compute dtype.
  return x * jnp.asarray(math.sqrt(cfg.hidden_size), x.dtype)


def unembed_matrix(params: Params) -> Float[Array, "V D"]:
  """Returns the output embedding: `lm_head`, or the input embedding if tied."""
  return params.get("lm_head", params["embed"])


def unembed(params: Params, x: Float[Array, "... D"], cfg: ModelConfig) -> Float32[Array, "... V"]:
  """Computes the logits of final hidden states."""
  w = unembed_matrix(params)
  logits = jnp.einsum("...d,vd->...v", x.astype(w.dtype), w, preferred_element_type=jnp.float32)
  return soft_cap(logits, cfg.final_logit_softcapping)


def forward(
  params: Params,
  x: Float[Array, "B T D"],
  positions: Int32[Array, "B T"],
  attend: WindowedAttend,
  cfg: ModelConfig,
  gather: Callable[[Params], Params],
  all_reduce: Callable[[Array], Array] = lambda x: x,
  remat: Callable[[_ScannedLayer], _ScannedLayer] = lambda f: f,
  windows: Int32[Array, " L"] | None = None,
) -> Float[Array, "B T D"]:
  """Computes the final hidden states of packed rows (training and evaluation).

  Args:
    params: the weights, layers stacked.
    x: the token embeddings.
    positions: the rotary position of each token.
    attend: attention over the row, closed over its mask: `attend(q, k, v, window)` with the
      layer's entry of `windows`.
    gather: gathers one layer's weights, in x's dtype.
    all_reduce: see `layer`.
    remat: a decorator for the layer function that sets what the backward pass recomputes.
    windows: the sliding window of each layer, in tokens; None: no layer has one.
  """
  angles = rope_angles(positions, cfg)

  def body(x: Array, inputs: tuple[Params, Array | None]) -> tuple[Array, None]:
    p, window = inputs

    def within(q: Query, k: KeyValue, v: KeyValue) -> tuple[Query, Any]:
      return attend(q, k, v, window)

    return layer(gather(p), x, angles, within, cfg, all_reduce)[0], None

  x, _ = jax.lax.scan(remat(body), x, (params["layers"], windows))
  return norm(x, params["final_norm"], cfg)


def unstack(
  params: Params,
  cfg: ModelConfig,
  dtype: DTypeLike,
  merge_lora: Callable[[Params], Params] = lambda p: p,
) -> Params:
  """Returns the weights for decoding: cast to `dtype`, with the layers as a list.

  Done once per generation, since slicing a stacked weight inside the decode loop would copy
  the slice for every token. `merge_lora` merges a layer's adapters into its weights.
  """

  def cast(weight: Array) -> Array:
    return weight.astype(dtype)

  layers = [
    merge_lora({name: w[i] for name, w in params["layers"].items()})
    for i in range(cfg.num_hidden_layers)
  ]
  return jax.tree.map(cast, {**params, "layers": layers})
