"""Checkpoints of earlier versions, which ignored the pre-tokenizer that a GGUF file names."""

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
  """Raises a UserError if a checkpoint's run tokenized text differently, its model being a GGUF.

  The identity in checkpoints of those versions has no digest of the split.

  Args:
    checkpoint: the checkpoint's folder, for the message.
    identity: of the checkpoint; see `fingerprint.identity_fields`.
    model, tokenizer: as opened by this version.
    remedy: the fix, for the message.
  """
  if not identity or SPLIT in identity or model.path is None or model.path.suffix != ".gguf":
    return
  earlier = dataclasses.replace(tokenizer, encode=encode_unsplit(model.path))
  if model_fields(model, earlier)[SPLIT] != model_fields(model, tokenizer)[SPLIT]:
    raise UserError(
      f"{checkpoint} is of an earlier version of simpo_jax, which did not split text as "
      f"tokenizer.ggml.pre of {model.name} says, so its run learned from other tokens; {remedy}"
    )
