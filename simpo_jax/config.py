"""A run's config, made of the table in `settings/`.

A config file (`configs/*.py`) calls `default_config()`, changes what it needs
and returns it; the command line overrides single fields with
`--config.train.steps=10`. Sequences are tuples, because lists cannot be
overridden by flags. `config_check.validate` makes `Settings` of it.
"""

import dataclasses
import difflib
import json
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

import ml_collections

from simpo_jax.settings import Settings

# An ml_collections.ConfigDict, of whose fields no type checker knows.
Config: TypeAlias = Any


def default_config() -> Config:
  """The defaults: the embedded tiny model and its own pairs, nothing to download."""
  return ml_collections.ConfigDict(dataclasses.asdict(Settings()))


def flatten(config: Settings | Config | Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """{"train.steps": 7, ...}, in the order of the config."""
  items = dataclasses.asdict(config) if isinstance(config, Settings) else config
  out: dict[str, Any] = {}
  for key, value in items.items():
    if hasattr(value, "items"):
      out.update(flatten(value, f"{prefix}{key}."))
    else:
      out[prefix + key] = value
  return out


def to_settings(fields: Mapping[str, Any]) -> Settings:
  """The settings of a config that is flat and has every field; an int becomes the float it is."""
  return _group(Settings, fields, "")


def _group(kind: type, fields: Mapping[str, Any], prefix: str) -> Any:
  values = {}
  for field in dataclasses.fields(kind):
    name = prefix + field.name
    if isinstance(field.default_factory, type):
      values[field.name] = _group(field.default_factory, fields, f"{name}.")
    else:
      value = fields[name]
      values[field.name] = float(value) if isinstance(field.default, float) else value
  return kind(**values)


def replace_fields(settings: Settings, changes: Mapping[str, Any]) -> Settings:
  """Settings with other values of some fields, named like "train.steps"."""
  return to_settings({**flatten(settings), **changes})


def as_json(settings: Settings) -> dict[str, Any]:
  """The settings as they are out of JSON: tuples are lists."""
  return json.loads(json.dumps(dataclasses.asdict(settings)))


def differing(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
  """The fields in which two configs, flat and out of JSON, are not the same.

  A field that the version which wrote a config did not have is at its default there. One that
  this version does not have is another in a config that has it: what it asked for is not done.
  """
  defaults, absent = flatten(as_json(Settings())), object()
  before, now = {**defaults, **before}, {**defaults, **now}
  return [n for n in {**before, **now} if before.get(n, absent) != now.get(n, absent)]


def did_you_mean(name: str, known: Iterable[str]) -> str:
  """ "; did you mean 'x'?", or nothing if no known name is near."""
  near = difflib.get_close_matches(name, list(known), n=1)
  return f"; did you mean {near[0]!r}?" if near else ""
