"""What a model's makers would have it sample with: its generation_config.json."""

import json
from typing import Any

from simpo_jax.config_check import kind_problem, range_problem
from simpo_jax.data.prompts import SETTINGS
from simpo_jax.errors import UserError
from simpo_jax.models.weights import OpenModel
from simpo_jax.settings import FIELDS


def read_generation_config(model: OpenModel) -> dict[str, Any]:
  """What the model's makers would have it sample with, as fields of `config.generate`.

  What is no valid setting is left alone.
  """
  path = None if model.path is None else model.path / "generation_config.json"
  if path is None or not path.is_file():
    return {}
  try:
    found = json.loads(path.read_text())
    found = {name: found[name] for name in SETTINGS if found.get(name) is not None}
    samples = json.loads(path.read_text()).get("do_sample")
  except (OSError, ValueError, RecursionError, AttributeError, TypeError) as e:
    raise UserError(f"{path} is not readable JSON ({e}); fix or remove it") from e
  good = {
    name: value
    for name, value in found.items()
    if kind_problem(FIELDS[f"generate.{name}"], value) is None
    and range_problem(FIELDS[f"generate.{name}"], value) is None
  }
  if samples:
    return {"temperature": 1.0, **good}
  greedy = ("repetition_penalty", "max_new_tokens")  # the others are for sampling
  return {name: value for name, value in good.items() if name in greedy}
