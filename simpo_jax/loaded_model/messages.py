"""Rewrites messages for commands without a config: flags instead of config fields."""

import contextlib
import dataclasses
import re

from simpo_jax.errors import UserError
from simpo_jax.settings import GenerateSettings

_FLAGS = {"num_samples": "samples_per_prompt", "prompt_list": "prompt"}  # if the names differ


@contextlib.contextmanager
def in_flag_names():
  """Replaces config fields by their flags in UserErrors that the body raises."""
  try:
    yield
  except UserError as e:
    error = UserError(flag_names(str(e)))
    error.exit_code = e.exit_code
    raise error from e


def flag_names(text: str) -> str:
  """Replaces config fields by their flags, such as "--config.generate.top_k=-1" by "--top_k=-1"."""
  fields = "|".join(field.name for field in dataclasses.fields(GenerateSettings))
  text = text.replace("--config.model.source", "--model").replace("--workdir=", "--model=")
  text = text.replace("--config.model.compute_dtype", "--dtype")
  text = re.sub(r"(?:--config\.|(?<![\w/.\\-]))data\.columns\b", "--columns", text)
  return re.sub(
    rf"(?:--config\.|(?<![\w/.\\-]))generate\.({fields})\b",
    lambda m: f"--{_FLAGS.get(m[1], m[1])}",
    text,
  )
