"""Reads the sampling settings that a model recommends, from its generation_config.json."""

import json
from typing import Any

from simpo_jax.config_check import kind_problem, range_problem
from simpo_jax.data.prompts import SETTINGS
from simpo_jax.errors import UserError
from simpo_jax.models.weights import OpenModel
from simpo_jax.settings import FIELDS


def read_generation_config(model: OpenModel) -> dict[str, Any]:
  """Returns the recommended sampling settings, as fields of `config.generate`.

  Values that are not valid for their field are ignored.

  Raises:
    UserError: the file is not a JSON object.
  """
  path = None if model.path is None else model.path / "generation_config.json"
  if path is None or not path.is_file():
    return {}
  try:
    content = json.loads(path.read_text())
    found = {name: content[name] for name in SETTINGS if content.get(name) is not None}
    do_sample = content.get("do_sample")
  except (OSError, ValueError, RecursionError, AttributeError, TypeError) as e:
    raise UserError(f"{path} is not readable JSON ({e}); fix or remove it") from e
  valid = {
    name: value
    for name, value in found.items()
    if kind_problem(FIELDS[f"generate.{name}"], value) is None
    and range_problem(FIELDS[f"generate.{name}"], value) is None
  }
  if do_sample:
    return {"temperature": 1.0, **valid}
  greedy = ("repetition_penalty", "max_new_tokens")  # all others have no effect without sampling
  return {name: value for name, value in valid.items() if name in greedy}
