"""Checkpoints of a time when a GGUF's text was not split as the file says."""

import dataclasses

from simpo_jax import storage
from simpo_jax.errors import UserError
from simpo_jax.models.weights import OpenModel
from simpo_jax.runtime.fingerprint import SPLIT, model_fields
from simpo_jax.tokenizer.huggingface import encode_unsplit
from simpo_jax.tokenizer.tokenizer import Tokenizer


def check_split(
  checkpoint: storage.Path,
  identity: dict[str, str],
  model: OpenModel,
  tokenizer: Tokenizer,
  remedy: str,
) -> None:
  """Refuses a checkpoint whose run read a GGUF's text in other pieces than are read now.

  Versions that did so tell nothing of the split in the checkpoint's identity.

  Args:
    checkpoint: its folder, for the message.
    identity: that it was saved with; see `fingerprint.identity_fields`.
    model, tokenizer: of now.
    remedy: what can be done, for the message.
  """
  if not identity or SPLIT in identity or model.path is None or model.path.suffix != ".gguf":
    return
  earlier = dataclasses.replace(tokenizer, encode=encode_unsplit(model.path))
  if model_fields(model, earlier)[SPLIT] != model_fields(model, tokenizer)[SPLIT]:
    raise UserError(
      f"{checkpoint} is of an earlier version of simpo_jax, which did not split text as "
      f"tokenizer.ggml.pre of {model.name} says, so its run learned from other tokens; {remedy}"
    )
