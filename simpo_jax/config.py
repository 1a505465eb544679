"""A run's config as a ConfigDict, generated from the dataclasses in `settings/`.

A config file (`configs/*.py`) calls `default_config()`, changes fields and returns it; the command
line overrides single fields, as in `--config.train.steps=10`. Sequences are tuples, because
ml_collections' flags cannot override lists. `config_check.validate` converts it to `Settings`.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import ml_collections

from simpo_jax.settings import Settings

# An ml_collections.ConfigDict, whose fields are unknown to type checkers.
Config: TypeAlias = Any


def default_config() -> Config:
  """Returns the defaults: the embedded tiny model and embedded pairs, with nothing to download."""
  return ml_collections.ConfigDict(dataclasses.asdict(Settings()))


def flatten(config: Settings | Config | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Returns {"train.steps": 7, ...}, in the order of the config."""
  items = dataclasses.asdict(config) if isinstance(config, Settings) else config
  out: dict[str, Any] = {}
  for key, value in items.items():
    if hasattr(value, "items"):
      out.update(flatten(value, f"{prefix}{key}."))
    else:
      out[prefix + key] = value
  return out


def to_settings(fields: Mapping[str, Any]) -> Settings:
  """Converts a complete flat config to Settings; ints in float fields become floats."""
  return _build_group(Settings, fields, "")


def _build_group(kind: type, fields: Mapping[str, Any], prefix: str) -> Any:
  values = {}
  for field in dataclasses.fields(kind):
    name = prefix + field.name
    if isinstance(field.default_factory, type):
      values[field.name] = _build_group(field.default_factory, fields, f"{name}.")
    else:
      value = fields[name]
      values[field.name] = float(value) if isinstance(field.default, float) else value
  return kind(**values)


def replace_fields(settings: Settings, changes: Mapping[str, Any]) -> Settings:
  """Returns a copy of the settings with some fields replaced.

  Args:
    changes: new values by flat name, such as "train.steps".
  """
  return to_settings({**flatten(settings), **changes})


def as_json(settings: Settings) -> dict[str, Any]:
  """Returns the settings as nested dicts after a round trip through JSON: tuples become lists."""
  return json.loads(json.dumps(dataclasses.asdict(settings)))


def differing_fields(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
  """Returns the names of fields that differ between two flat configs that were read from JSON.

  A field that is missing in one of them, because an earlier version wrote it, counts as having its
  default. A field that this version does not know counts as different, since this version
  cannot do what it requests.
  """
  defaults, absent = flatten(as_json(Settings())), object()
  before, now = {**defaults, **before}, {**defaults, **now}
  return [n for n in {**before, **now} if before.get(n, absent) != now.get(n, absent)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """Returns "; did you mean 'x'?" with the most similar known name, or "" if none is similar."""
  near = difflib.get_close_matches(name, list(known), n=1)
  return f"; did you mean {near[0]!r}?" if near else ""
