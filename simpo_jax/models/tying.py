"""Whether a checkpoint's head is its embedding, whatever its config says."""

import dataclasses

import numpy as np

from simpo_jax.models.config import ModelConfig
from simpo_jax.models.safetensors import Weights

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
UNTIED = "its lm_head.weight is not its embedding, and is used; tie_word_embeddings is false"
_BLOCK = 2**22  # values of each tensor that are in memory at once


def untied_if_different(config: ModelConfig, weights: Weights) -> ModelConfig:
  """Returns the config, without tying if the checkpoint has a head with other values.

  The same rule as that of transformers 5 (`PreTrainedModel.tie_weights`).
  """
  shape = weights.shapes.get(EMBEDDING)
  if not config.tie_word_embeddings or HEAD not in weights.shapes or shape is None:
    return config
  if weights.shapes[HEAD] == shape and len(shape) == 2 and _are_equal(weights, *shape):
    return config
  return dataclasses.replace(config, tie_word_embeddings=False)


def _are_equal(weights: Weights, rows: int, columns: int) -> bool:
  step = max(1, _BLOCK // max(columns, 1))
  for start in range(0, rows, step):
    index = slice(start, min(start + step, rows)), slice(0, columns)
    embedding, head = (np.asarray(weights.read(name, index)) for name in (EMBEDDING, HEAD))
    if not np.array_equal(embedding.astype(np.float32), head.astype(np.float32), equal_nan=True):
      return False
  return True
