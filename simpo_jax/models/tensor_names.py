"""The names that wrappers give to the tensors of a checkpoint, and the names of transformers."""

from simpo_jax.errors import UserError
from simpo_jax.models.safetensors import Index, Weights

# Parts of a name: of DataParallel, torch.compile, FSDP, activation checkpointing, and of models
# that read images as well. No tensor of a language model has such a part of its own.
_WRAPPERS = (
  "module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "language_model",
)  # fmt: skip
_BASE = "model."  # before the names of a causal LM's base model, which may be saved alone
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
    plain = _plain(name)
    if plain in stored:
      raise UserError(
        f"{where} holds both {stored[plain]} and {name}, which are the same tensor; remove one"
      )
    stored[plain] = name
  wrappers = [w for w in _WRAPPERS if any(w in name.split(".") for name in stored.values())]
  notes = [f"the prefix {w}. of its tensors is left out" for w in wrappers]
  if any(name.split(".")[0] in _OF_BASE for name in map(_unwrapped, weights.shapes)):
    notes.append(f"its tensors have no prefix {_BASE} and are read as if they had")

  def read(name: str, index: Index):
    return weights.read(stored[name], index)

  shapes = {plain: weights.shapes[name] for plain, name in stored.items()}
  return Weights(shapes, read, (*weights.notes, *notes))


def _unwrapped(name: str) -> str:
  return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _plain(name: str) -> str:
  name = _unwrapped(name)
  return f"{_BASE}{name}" if name.split(".")[0] in _OF_BASE else name
