"""A run's config, made of the table in `settings/`.

A config file (`configs/*.py`) calls `default_config()`, changes what it needs
and returns it; the command line overrides single fields with
`--config.train.steps=10`. Sequences are tuples, because lists cannot be
overridden by flags.
"""

import difflib
import json
from typing import Any

import ml_collections

from simpo_jax.settings import FIELDS


def default_config() -> ml_collections.ConfigDict:
  """The defaults: the embedded tiny model and its own pairs, nothing to download."""
  c = ml_collections.ConfigDict()
  for field in FIELDS.values():
    section = c
    for group in field.name.split(".")[:-1]:
      if group not in section:
        section[group] = ml_collections.ConfigDict()
      section = section[group]
    section[field.name.rpartition(".")[2]] = field.default
  return c


def flatten(config, prefix: str = "") -> dict:
  """{"train.steps": 7, ...}, in the order of the config."""
  out = {}
  for key, value in config.items():
    if hasattr(value, "items"):
      out.update(flatten(value, f"{prefix}{key}."))
    else:
      out[prefix + key] = value
  return out


def differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
  """The fields in which two configs, flat and out of JSON, are not the same.

  A field that the version which wrote a config did not have is at its default there. One that
  this version does not have is another in a config that has it: what it asked for is not done.
  """
  defaults, absent = flatten(json.loads(default_config().to_json())), object()
  before, now = {**defaults, **before}, {**defaults, **now}
  return [n for n in {**before, **now} if before.get(n, absent) != now.get(n, absent)]


def did_you_mean(name: str, known) -> str:
  """ "; did you mean 'x'?", or nothing if no known name is near."""
  near = difflib.get_close_matches(name, list(known), n=1)
  return f"; did you mean {near[0]!r}?" if near else ""
