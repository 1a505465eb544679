"""Tokens that an answer may not contain, or not yet: `suppress_tokens` and `min_new_tokens`.

As in Hugging Face's generate, their logits count as -inf, after the repetition penalty and
before temperature and truncation.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int32

from simpo_jax.errors import UserError
from simpo_jax.settings import GenerateSettings


class Suppression(NamedTuple):
  """The suppressed tokens of a generation."""

  early: Bool[Array, " V"]  # in the first `min_new_tokens` tokens of an answer
  always: Bool[Array, " V"]
  min_new_tokens: Int32[Array, ""]


def suppresses(settings: GenerateSettings) -> bool:
  """Whether the program needs a `Suppression`."""
  return bool(settings.min_new_tokens or settings.suppress_tokens)


def make_suppression(
  settings: GenerateSettings, end_ids: Sequence[int], vocab_size: int
) -> Suppression | None:
  """Returns numpy arrays, or None if nothing is suppressed.

  Args:
    end_ids: the tokens that end an answer; those outside the vocabulary are ignored.
    vocab_size: V.

  Raises:
    UserError: an id is not in the vocabulary, or no token is left.
  """
  if not suppresses(settings):
    return None
  for token in settings.suppress_tokens:
    if not 0 <= token < vocab_size:
      raise UserError(
        f"--config.generate.suppress_tokens: {token} is not in the model's vocabulary of "
        f"{vocab_size} tokens; remove it"
      )
  always = np.zeros(vocab_size, bool)
  always[list(settings.suppress_tokens)] = True
  early = always.copy()
  if settings.min_new_tokens:
    early[[i for i in end_ids if i < vocab_size]] = True
  if early.all():
    raise UserError(
      "--config.generate.suppress_tokens leaves no token to begin an answer with; suppress fewer"
    )
  return _on_host(early, always, settings.min_new_tokens)


def empty_suppression(vocab_size: int) -> Suppression:
  """Returns numpy arrays that suppress nothing."""
  none = np.zeros(vocab_size, bool)
  return _on_host(none, none, 0)


def suppressed(s: Suppression, count: Int32[Array, " B"]) -> Bool[Array, "B V"]:
  """Returns the tokens that may not come next in answers of `count` tokens."""
  return jnp.where((count < s.min_new_tokens)[:, None], s.early, s.always)


def _on_host(early: Any, always: Any, min_new_tokens: int) -> Suppression:
  least: Any = np.asarray(min_new_tokens, np.int32)  # numpy, where the fields say Array
  return Suppression(early, always, least)
