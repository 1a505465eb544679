"""Checkpoints of earlier versions, which did not split text as the model's files say."""

from simpo_jax import storage
from simpo_jax.errors import UserError, first_line
from simpo_jax.models.weights import OpenModel
from simpo_jax.runtime.fingerprint import SPLIT, split_digest
from simpo_jax.tokenizer.huggingface import encode_earlier, has_tokenizer
from simpo_jax.tokenizer.tokenizer import Tokenizer


def check_split(
  checkpoint: storage.Path,
  identity: dict[str, str],
  model: OpenModel,
  tokenizer: Tokenizer,
  remedy: str,
) -> None:
  """Raises a UserError if a checkpoint's run tokenized text as earlier versions did, and wrongly.

  Also if that cannot be told. The identity in checkpoints of the first versions has no digest of
  the split.

  Args:
    checkpoint: the checkpoint's folder, for the message.
    identity: of the checkpoint; see `fingerprint.identity_fields`.
    model, tokenizer: as opened by this version.
    remedy: the fix, for the message.
  """
  path, was = model.path, identity.get(SPLIT)
  if not identity or path is None or not (path.is_file() or (was and has_tokenizer(path))):
    return
  now = split_digest(tokenizer.encode)
  if was == now:
    return
  try:
    read = split_digest(encode_earlier(path))
  except Exception as error:  # its type depends on what transformers misses in the files
    raise UserError(
      f"{checkpoint} may be of an earlier version of simpo_jax, which did not split text as "
      f"{model.name} says; that cannot be told, since transformers does not read {path} "
      f"({first_line(error)}); {remedy}"
    ) from error
  if read != now and was in (None, read):
    raise UserError(
      f"{checkpoint} is of an earlier version of simpo_jax, which did not split text as "
      f"{model.name} says, so its run learned from other tokens; {remedy}"
    )
