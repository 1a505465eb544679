"""Validation of a config: all checks that need no file and no device."""

import math
import sys
from typing import Any

from simpo_jax.config import Config, did_you_mean, flatten, to_settings
from simpo_jax.errors import UserError, shown
from simpo_jax.models.source import path_in
from simpo_jax.settings import FIELDS, Settings
from simpo_jax.settings.field import Field
from simpo_jax.settings.train import LORA_TARGETS
from simpo_jax.storage.paths import check_path

_MAX_INT = 2**31 - 1  # counts are int32 on the devices
_FIELD_TYPES = {  # type of the default: (accepted types, description for messages)
  bool: ((bool,), "True or False"),
  int: ((int,), "a whole number"),
  float: ((int, float), "a finite number"),
  tuple: ((tuple,), "a tuple"),
  str: ((str,), "a string"),
}


def validate(config: Config | Settings) -> Settings:
  """Validates a config without reading any file, and returns it as Settings.

  Raises:
    UserError: a field is invalid; the message names it as on the command line, and the values
      that it accepts.
  """
  fields = flatten(config)
  _check_names(fields)
  _check_values(fields)
  settings = to_settings(fields)
  check_path("--config.name", f"runs/{'0' * 15}-{settings.name}")
  _check_lora(settings)
  _check_combinations(settings)
  _check_steps(settings)
  return settings


def _check_names(fields: dict[str, Any]) -> None:
  for name in fields:
    if name not in FIELDS:
      raise UserError(f"config.{name}: there is no such field{did_you_mean(name, FIELDS)}")
  for name in FIELDS:
    if name not in fields:
      raise UserError(f"the config has no field {name}; start it from default_config()")


def _check_values(fields: dict[str, Any]) -> None:
  """Checks values against the declarations of their fields: all types first, then limits."""
  for field in FIELDS.values():
    if problem := kind_problem(field, fields[field.name]):
      raise UserError(f"--config.{field.name}={shown(fields[field.name])} {problem}")
  if not fields["model.source"]:
    raise UserError("--config.model.source is empty; name a folder, a .gguf file, or embedded")
  for field in FIELDS.values():
    _check_value(field, fields[field.name])


def _check_value(field: Field, value: Any) -> None:
  name = f"--config.{field.name}"
  if field.choices and value not in field.choices:
    raise UserError(
      f"{name}={shown(value)!r} is not one of {', '.join(field.choices)}"
      + did_you_mean(value, field.choices)
    )
  if field.low is not None and (problem := range_problem(field, value)):
    raise UserError(f"{name}={shown(value)} {problem}")
  if field.element:
    _check_elements(field, value, field.element)
  if field.is_path:
    for path in (value,) if isinstance(value, str) else value:
      check_path(name, path_in(path.removeprefix("tfds:")))


def _check_elements(field: Field, value: tuple[Any, ...], kind: type) -> None:
  for element in value:
    if not _has_type(kind, element):
      raise UserError(
        f"--config.{field.name}={shown(value)}: {shown(element)!r} is not {_FIELD_TYPES[kind][1]}; "
        f"write it like {field.example}"
      )
    if kind in (int, float) and (problem := range_problem(field, element)):
      raise UserError(f"--config.{field.name}: {shown(element)} {problem}")


def _check_lora(config: Settings) -> None:
  for target in config.train.lora_targets:
    if target not in LORA_TARGETS:
      raise UserError(
        f"--config.train.lora_targets: {shown(target)!r} is not one of {', '.join(LORA_TARGETS)}"
        + did_you_mean(target, LORA_TARGETS)
      )
  if config.train.lora_rank and not config.train.lora_targets:
    raise UserError(
      f"--config.train.lora_rank={config.train.lora_rank} with no --config.train.lora_targets "
      f"would train nothing; name some of {', '.join(LORA_TARGETS)}, or set lora_rank=0"
    )
  if config.model.param_dtype != "float32" and not config.train.lora_rank:
    raise UserError(
      f"--config.model.param_dtype={config.model.param_dtype} would train almost nothing: most "
      "updates are smaller than its rounding error; keep float32 and compute in bfloat16 "
      "(--config.model.compute_dtype=bfloat16), or train adapters on top of frozen weights "
      "(--config.train.lora_rank=16)"
    )


def _check_combinations(config: Settings) -> None:
  if config.simpo.loss_type == "hinge" and config.simpo.label_smoothing:
    raise UserError(
      f"--config.simpo.label_smoothing={config.simpo.label_smoothing} has no effect on "
      "--config.simpo.loss_type=hinge; set it to 0, or loss_type to sigmoid"
    )
  if config.export.at_end and not config.checkpoint.at_end:
    raise UserError(
      "--config.export.at_end=True reads the last checkpoint, which "
      "--config.checkpoint.at_end=False leaves out; switch one of them"
    )
  least, most = config.generate.min_new_tokens, config.generate.max_new_tokens
  if least > most:
    raise UserError(
      f"--config.generate.min_new_tokens={least} exceeds --config.generate.max_new_tokens={most}; "
      "lower it, or raise max_new_tokens"
    )
  data = config.data
  if data.max_prompt_length >= data.max_length:
    raise UserError(
      f"--config.data.max_prompt_length={data.max_prompt_length} must be at least 1 and below "
      f"data.max_length={data.max_length}, to leave room for a response"
    )


def _check_steps(config: Settings) -> None:
  profiled = config.profile.steps
  if profiled and not (
    len(profiled) == 2 and 1 <= profiled[0] <= profiled[1] <= config.train.steps
  ):
    raise UserError(
      f"--config.profile.steps={shown(profiled)} is not (first, last) with "
      f"1 <= first <= last <= {config.train.steps} (--config.train.steps); write it like (3,6)"
    )
  late = [step for step in config.generate.at_steps if not 1 <= step <= config.train.steps]
  if late:
    raise UserError(
      f"--config.generate.at_steps={shown(config.generate.at_steps)}: step {shown(late[0])} is not "
      f"in 1..{config.train.steps} (--config.train.steps={config.train.steps}); if the config file "
      'set it, --config.generate.at_steps="()" clears it'
    )


def kind_problem(field: Field, value: Any) -> str | None:
  """Returns what is wrong with the type of a value ("must be a whole number, ..."), or None."""
  if _has_type(type(field.default), value):
    return None
  what = _FIELD_TYPES[type(field.default)][1]
  return f"must be {what}, such as {field.example or repr(field.default)}"


def _has_type(kind: type, value: Any) -> bool:
  kinds, _ = _FIELD_TYPES[kind]
  valid = isinstance(value, kinds) and (bool in kinds or not isinstance(value, bool))
  return valid and (float not in kinds or abs(value) <= sys.float_info.max)  # False for NaN, too


def range_problem(field: Field, value: float) -> str | None:
  """Returns what is wrong with a numeric value ("must be at least 1"), or None."""
  low, high = -math.inf if field.low is None else field.low, field.high
  if isinstance(value, int) and abs(value) > (high if isinstance(high, int) else _MAX_INT):
    return f"must be between {low} and {_MAX_INT if high is None else high}"
  top = high if high is not None else _MAX_INT if isinstance(value, int) else math.inf
  if not (low <= value <= top and math.isfinite(value)):
    if high is None and (value < low or isinstance(low, float)):
      return f"must be at least {low}" + ("" if math.isfinite(value) else ", and finite")
    return f"must be between {low} and {top}"
  if field.name == "generate.temperature" and 0 < value < 0.01:
    return "must be 0 (greedy) or at least 0.01"
  return None
