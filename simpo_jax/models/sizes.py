"""Sizes that depend only on a model's config."""

from simpo_jax.models.config import ModelConfig


def layer_weights(model: ModelConfig) -> int:
  """Returns the number of weights in the matrices of all layers."""
  D, h = model.hidden_size, model.head_dim
  attention = 2 * D * h * (model.num_attention_heads + model.num_key_value_heads)
  return model.num_hidden_layers * (attention + 3 * D * model.intermediate_size)


def cache_bytes(model: ModelConfig, context: float, itemsize: int) -> float:
  """Returns the bytes of keys and values of `context` tokens, for all layers and heads."""
  return (
    2.0
    * model.num_hidden_layers
    * model.num_key_value_heads
    * model.head_dim
    * (context * itemsize)
  )
