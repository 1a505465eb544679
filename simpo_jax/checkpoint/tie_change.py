"""Checkpoints of earlier versions, which dropped the head of a model whose config ties it."""

import dataclasses

from simpo_jax.models.tying import UNTIED
from simpo_jax.models.weights import OpenModel
from simpo_jax.program.ledger import hex_digest
from simpo_jax.runtime.fingerprint import config_text


def as_trained(model: OpenModel, identity: dict[str, str]) -> OpenModel:
  """Returns the model with its head tied, if that is what the checkpoint's run trained.

  Args:
    model: as opened by this version.
    identity: of the checkpoint; see `fingerprint.identity_fields`.
  """
  tied = dataclasses.replace(model.config, tie_word_embeddings=True)
  if UNTIED not in model.notes or identity.get("model's config") != hex_digest(config_text(tied)):
    return model
  notes = tuple(note for note in model.notes if note != UNTIED)
  return model._replace(config=tied, notes=notes)
