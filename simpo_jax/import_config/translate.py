"""Translates the fields of another trainer's recipe to a config, with a report on each field."""

import math
from typing import Any, NamedTuple

from simpo_jax.config import default_config, did_you_mean
from simpo_jax.config_check import validate
from simpo_jax.errors import UserError
from simpo_jax.import_config import parts
from simpo_jax.import_config.datasets import datasets
from simpo_jax.import_config.fields import (
  DEFAULTS,
  FIELD_TYPES,
  FORM_MARKERS,
  FORMS,
  IGNORED_FIELDS,
  KNOWN,
  SUPPORTED_VALUES,
)
from simpo_jax.import_config.parts import RunFacts, printable

MAPPED, IGNORED, UNSUPPORTED = "mapped", "ignored", "NOT SUPPORTED"
_TYPE_OF = {name: kind for kind, names in FIELD_TYPES.items() for name in names}
_IGNORED_REASON = {name: reason for reason, names in IGNORED_FIELDS.items() for name in names}
_TYPE_NAMES = {
  float: "a finite number",
  int: "a whole number",
  bool: "true or false",
  str: "text",
}


class Row(NamedTuple):
  """Report on one field of the recipe."""

  field: str
  value: str
  status: str  # MAPPED, IGNORED or UNSUPPORTED
  text: str  # what it is mapped to, or the reason


class Translation(NamedTuple):
  """A translated recipe."""

  settings: dict[str, Any]  # config values by flattened name, such as "train.steps"
  rows: list[Row]
  prepare: list[str]  # commands that prepare its datasets
  workdir: str


def detect_form(given: dict[str, Any], where: str) -> str:
  """Detects a recipe's form, one of `fields.FORMS`, by fields that only one of them has.

  Raises:
    UserError: the fields belong to both forms, or to neither.
  """
  found = {form: [name for name in FORM_MARKERS[form] if name in given] for form in FORMS}
  if given.get("loss_type") in ("simpo", "alphapo"):
    found["trl"].append("loss_type")
  if found["trl"] and found["princeton"]:
    raise UserError(
      f"{where} has {found['trl'][0]} of TRL and {found['princeton'][0]} of princeton-nlp/SimPO, "
      "which are different trainers; choose one with --form=trl or --form=princeton"
    )
  for form in FORMS:
    if found[form]:
      return form
  raise UserError(
    f"{where} could be TRL's or princeton-nlp/SimPO's; choose with --form=trl or --form=princeton"
  )


def translate(given: dict[str, Any], form: str, facts: RunFacts, where: str) -> Translation:
  """Translates a recipe to a config that trains like the recipe.

  Args:
    given: the recipe's fields.
    form: one of `fields.FORMS`.
    facts: the number of devices and pairs, which recipes do not contain.
    where: the recipe's path, for messages.

  Raises:
    UserError: a value is invalid, or a required field or fact is missing.
  """
  v = {**DEFAULTS[form], **{name: _convert(name, x, where) for name, x in given.items()}}
  if not v.get("model_name_or_path"):
    raise UserError(f"{where} names no model; add model_name_or_path to it")
  batch = parts.batch(v, facts, where)
  steps = parts.steps(v, batch.settings["train.batch_size"], facts, where)
  total = steps.settings["train.steps"]
  evaluation = parts.evaluation(v, total)
  evaluates = bool(evaluation.settings["evaluate.at_end"] or evaluation.settings["evaluate.every"])
  all_parts = [
    parts.run_name(v, where),
    parts.renamed(v),
    datasets(v, form, facts, evaluates, where),
    parts.formatting(v, form),
    batch,
    steps,
    parts.optimizer(v),
    parts.schedule(v, total),
    parts.precision(v),
    parts.lora(v, where),
    parts.loss(v, form, where),
    evaluation,
    parts.saving(v, total),
  ]
  settings, mapped, problems = {}, {}, {}
  for part in all_parts:
    settings |= part.settings
    mapped |= part.mapped
    problems |= part.problems
  _validate(settings, where)
  rows = [_row(name, value, mapped, problems) for name, value in given.items()]
  for name in DEFAULTS[form]:
    if name not in given and (name in mapped or name in problems):
      row = _row(name, v[name], mapped, problems)
      rows.append(row._replace(value=f"{row.value} (default)"))
  implied = ("data.header", "data.truncation")  # by the form
  rows.append(Row(f"({form})", "", MAPPED, ", ".join(f"{h} = {settings[h]}" for h in implied)))
  commands = [command for part in all_parts for command in part.prepare]
  return Translation(settings, rows, commands, str(v.get("output_dir", "runs/mine")))


def make_config(settings: dict[str, Any]):
  """Returns the default config with these settings, not validated."""
  config = default_config()
  config.update_from_flattened_dict(settings)
  return config


def _validate(settings: dict[str, Any], where: str) -> None:
  try:
    validate(make_config(settings))
  except UserError as e:
    raise UserError(f"{where}: {e}") from e


def _convert(name: str, value: Any, where: str) -> Any:
  """Converts a value to its field's type; YAML reads 1e-6, without a decimal point, as text."""
  kind = _TYPE_OF.get(name)
  if kind is None:
    return value
  if name.endswith("_strategy") and value is False:
    return "no"  # YAML reads an unquoted no as false
  error = UserError(f"{where}: {name} is {printable(value)}, and must be {_TYPE_NAMES[kind]}")
  if kind in (bool, str):
    if type(value) is not kind:
      raise error
    return value
  if type(value) not in (int, float, str):
    raise error
  try:
    number = float(value)
  except (ValueError, OverflowError) as e:
    raise error from e
  if not math.isfinite(number) or (kind is int and number != int(number)):
    raise error
  return kind(number)


def _row(name: str, value: Any, mapped: dict[str, str], problems: dict[str, str]) -> Row:
  def row(status: str, text: str) -> Row:
    return Row(printable(name), printable(value), status, text)

  if name in problems:
    return row(UNSUPPORTED, problems[name])
  if name in mapped:
    return row(MAPPED, mapped[name])
  if name in SUPPORTED_VALUES:
    supported, reason = SUPPORTED_VALUES[name]
    same = any(type(value) is type(x) and value == x for x in supported)
    return row(IGNORED, "always so in simpo_jax") if same else row(UNSUPPORTED, reason)
  if name in _IGNORED_REASON:
    return row(IGNORED, _IGNORED_REASON[name])
  if name in KNOWN:
    return row(IGNORED, "another field takes precedence")
  return row(UNSUPPORTED, f"neither TRL nor SimPO has this field{did_you_mean(name, KNOWN)}")
