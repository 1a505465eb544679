"""Loads the tokenizer of an opened model: an adapter may have its own, or that of its base."""

import dataclasses
import pathlib

from simpo_jax.config import replace_fields
from simpo_jax.models.weights import OpenModel
from simpo_jax.settings import Settings
from simpo_jax.tokenizer.end_tokens import check_ends, folder_end_tokens
from simpo_jax.tokenizer.huggingface import has_tokenizer
from simpo_jax.tokenizer.load import run_tokenizer
from simpo_jax.tokenizer.tokenizer import Tokenizer


def tokenizer_of(model: OpenModel, config: Settings, date: str = "") -> Tokenizer:
  """Loads the tokenizer of a run; see `run_tokenizer`.

  Args:
    model: from `config.model.source`.
    date: current time for the chat template, ISO 8601; "": the time of this call.

  Raises:
    UserError: see `run_tokenizer`; or an end token of an adapter's base model is not in the
      tokenizer or has no row in the embedding.
  """
  if model.adapter is None:
    return run_tokenizer(config, date)
  home = tokenizer_path(model)
  tokenizer = run_tokenizer(replace_fields(config, {"model.source": str(home)}), date)
  if home == model.path:
    return tokenizer
  # An adapter's folder has no generation_config.json: the end tokens there are the base model's.
  assert model.path is not None, "the base model of an adapter has files"
  ends = folder_end_tokens(model.path).ids if model.path.is_dir() else []
  check_ends(ends, min(tokenizer.vocab_size, model.config.vocab_size), str(model.path))
  return dataclasses.replace(tokenizer, eos_ids=tuple(dict.fromkeys((*tokenizer.eos_ids, *ends))))


def tokenizer_path(model: OpenModel) -> pathlib.Path | None:
  """The folder or .gguf file that has a model's tokenizer; None if it is embedded."""
  if model.adapter is not None and has_tokenizer(model.adapter.path):
    return model.adapter.path
  return model.path
