"""The names of a checkpoint's tensors: as wrappers change them, and as its config declares them."""

import pathlib

import jax
import numpy as np

from simpo_jax.errors import UserError
from simpo_jax.models.config import ModelConfig
from simpo_jax.models.llama import Tensor, tensors
from simpo_jax.models.safetensors import Index, Weights

# Parts of a name: of DataParallel, torch.compile, FSDP, activation checkpointing, and of models
# that read images as well. No tensor of a language model has such a part of its own.
_WRAPPERS = (
  "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "language_model",
)  # fmt: skip
_BASE = "model."  # before the names of a causal LM's base model, which may be saved alone
_SHOWN = 3  # names listed in one message
_OF_BASE = ("embed_tokens", "layers", "norm")


def plain_names(weights: Weights, where: str) -> Weights:
  """Returns the weights under the names that transformers gives them in a causal LM.

  Args:
    where: the checkpoint, for error messages.

  Raises:
    UserError: two tensors have the same name without their wrappers.
  """
  stored: dict[str, str] = {}
  for name in weights.shapes:
    plain = plain_name(name)
    if plain in stored:
      raise UserError(
        f"{where} holds both {stored[plain]} and {name}, which are the same tensor; remove one"
      )
    stored[plain] = name
  wrappers = [w for w in _WRAPPERS if any(w in name.split(".") for name in stored.values())]
  notes = [f"the prefix {w}. of its tensors is left out" for w in wrappers]
  if any(name.split(".")[0] in _OF_BASE for name in map(_unwrapped, weights.shapes)):
    notes.append(f"its tensors have no prefix {_BASE} and are read as if they had")

  def read(name: str, index: Index) -> np.ndarray:
    return weights.read(stored[name], index)

  shapes = {plain: weights.shapes[name] for plain, name in stored.items()}
  return Weights(shapes, read, (*weights.notes, *notes))


def _unwrapped(name: str) -> str:
  return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def plain_name(name: str) -> str:
  """Returns the name that transformers gives to a tensor, or to a module, of a causal LM."""
  name = _unwrapped(name)
  return f"{_BASE}{name}" if name.split(".")[0] in _OF_BASE else name


def check_declared(
  config: ModelConfig, found: dict[str, tuple[int, ...]], path: pathlib.Path
) -> None:
  """Checks that a file has exactly the tensors of its config, including their shapes."""
  expected: dict[str, tuple[int, ...]] = {}
  declared: list[Tensor] = jax.tree.leaves(tensors(config))
  for tensor in declared:
    shape = tensor.shape[1:] if tensor.stacked else tensor.shape
    shape = shape[::-1] if tensor.transposed else shape
    for layer in range(config.num_hidden_layers if tensor.stacked else 1):
      expected[tensor.hf_name.format(layer)] = shape
  if missing := [name for name in expected if name not in found]:
    raise UserError(f"{path} lacks {_listed(missing)}; get the whole checkpoint, or fix its config")
  for name, shape in expected.items():
    if found[name] != shape:
      raise UserError(
        f"{path}: {name} has shape {found[name]}, but its config asks for {shape}; "
        "use the config that belongs to these weights"
      )

  def harmless(name: str) -> bool:  # a buffer of old checkpoints; a copy of the tied embedding
    return name.endswith("rotary_emb.inv_freq") or (
      name == "lm_head.weight" and config.tie_word_embeddings
    )

  if extra := [name for name in found if name not in expected and not harmless(name)]:
    raise UserError(
      f"{path} holds {_listed(extra)}, which a {config.model_type} model does not have; "
      "use a plain checkpoint (adapters merged, nothing quantized)"
    )


def _listed(names: list[str]) -> str:
  rest = f" and {len(names) - _SHOWN} more tensors" if len(names) > _SHOWN else ""
  return ", ".join(names[:_SHOWN]) + rest
