"""Translates the fields of another trainer's recipe to a config, with a report on each field."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from simpo_jax.config import default_config, did_you_mean
from simpo_jax.config_check import validate
from simpo_jax.errors import UserError
from simpo_jax.import_config import axolotl, llamafactory, parts, steps
from simpo_jax.import_config.datasets import datasets
from simpo_jax.import_config.fields import FIELD_TYPES, SUPPORTED_VALUES
from simpo_jax.import_config.forms import FORMS, Form
from simpo_jax.import_config.optimizers import optimizer
from simpo_jax.import_config.parts import Part, Recipe, RunFacts, printable

MAPPED, IGNORED, DIFFERS, UNSUPPORTED = "mapped", "ignored", "differs", "NOT SUPPORTED"
_TYPE_OF = {name: kind for kind, names in FIELD_TYPES.items() for name in names}
_TYPE_NAMES = {
  float: "a finite number",
  int: "a whole number",
  bool: "true or false",
  str: "text",
}
# Implied by the form, or by several fields, and so told in a row of their own.
_IMPLIED = ("data.header", "data.truncation", "model.param_dtype")
_ADAPT: dict[str, Callable[[Recipe], tuple[dict[str, Any], Part]]] = {
  "llamafactory": llamafactory.adapt,
  "axolotl": axolotl.adapt,
}


class Row(NamedTuple):
  """Report on one field of the recipe."""

  field: str
  value: str
  status: str  # MAPPED, IGNORED, DIFFERS or UNSUPPORTED
  text: str  # what it is mapped to, or the reason


class Translation(NamedTuple):
  """A translated recipe."""

  settings: dict[str, Any]  # config values by flattened name, such as "train.steps"
  rows: list[Row]
  prepare: list[str]  # commands that prepare its datasets
  workdir: str


def translate(given: dict[str, Any], form: str, facts: RunFacts, where: str) -> Translation:
  """Translates a recipe to a config that trains like the recipe.

  Args:
    given: the recipe's fields.
    form: a key of `forms.FORMS`.
    facts: the number of devices and pairs, which recipes do not contain.
    where: the recipe's path, for messages.

  Raises:
    UserError: a value is invalid, or a required field or fact is missing.
  """
  r = _recipe(given, FORMS[form], facts, where)
  own = Part({})
  if form in _ADAPT:
    values, own = _ADAPT[form](r)
    r = r._replace(values=r.values | values)
  batch = steps.batch(r)
  duration = steps.steps(r, batch.settings["train.batch_size"])
  total = duration.settings["train.steps"]
  if form == "axolotl":
    values, texts = axolotl.after_steps(r, total)
    r, own = r._replace(values=r.values | values), own._replace(mapped=own.mapped | texts)
  evaluation = steps.evaluation(r, total)
  evaluates = bool(evaluation.settings["evaluate.at_end"] or evaluation.settings["evaluate.every"])
  whole = _union(
    parts.run_name(r),
    parts.renamed(r),
    parts.formatting(r),
    batch,
    duration,
    optimizer(r),
    steps.schedule(r, total),
    parts.precision(r),
    parts.lora(r),
    parts.loss(r),
    evaluation,
    steps.saving(r, total),
    datasets(r, evaluates),
    own,
  )
  _validate(whole.settings, where)
  implied = ", ".join(f"{name} = {whole.settings[name]}" for name in _IMPLIED)
  rows = [*_rows(given, r, whole), Row(f"({form})", "", MAPPED, implied)]
  workdir = str(r.values.get("output_dir", "runs/mine"))
  return Translation(whole.settings, rows, list(whole.prepare), workdir)


def _recipe(given: Mapping[str, Any], form: Form, facts: RunFacts, where: str) -> Recipe:
  values = dict(form.defaults)
  for name, value in given.items():
    if form.is_common(name):
      values[form.common.get(name, name)] = _convert(name, value, form, where)
    elif name in form.own:
      values[name] = _convert(name, value, form, where)
  if not values.get("model_name_or_path"):
    raise UserError(f"{where} names no model; add {form.own_name('model_name_or_path')} to it")
  return Recipe(values, frozenset(given), form, facts, where)


def _union(*all_parts: Part) -> Part:
  """Joins translations; of those of the same field, the last counts."""
  settings, mapped, problems, differs, prepare = {}, {}, {}, {}, ()
  for part in all_parts:
    settings |= part.settings
    mapped |= part.mapped
    problems |= part.problems
    differs |= part.differs
    prepare += part.prepare
  return Part(settings, mapped, problems, differs, prepare)


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


def _convert(name: str, value: Any, form: Form, where: str) -> Any:
  """Converts a value to its field's type; YAML reads 1e-6, without a decimal point, as text."""
  kinds = {n: kind for kind, names in form.types.items() for n in names}
  kind = kinds.get(name)
  if kind is None and name not in form.own:
    kind = _TYPE_OF.get(form.common.get(name, name))
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


def _rows(given: Mapping[str, Any], r: Recipe, whole: Part) -> list[Row]:
  """Reports on the fields of the file, then on defaults that are translated."""
  rows = [_row(name, value, r.form, whole) for name, value in given.items()]
  told = {r.form.common.get(name, name) for name in given}
  for name in {**r.form.defaults, **{n: None for n in (*whole.problems, *whole.differs)}}:
    if name not in told and any(name in t for t in (whole.mapped, whole.problems, whole.differs)):
      row = _row(r.form.own_name(name), r.values.get(name, "not set"), r.form, whole)
      rows.append(row._replace(value=f"{row.value} (default)"))
  return rows


def _row(name: str, value: Any, form: Form, whole: Part) -> Row:
  def row(status: str, text: str) -> Row:
    return Row(printable(name), printable(value), status, text)

  if name not in form.known:
    return row(UNSUPPORTED, _unknown(name, form))
  key = form.common.get(name, name)
  if form.is_common(name) or name in form.own:
    tables = ((UNSUPPORTED, whole.problems), (DIFFERS, whole.differs), (MAPPED, whole.mapped))
    for status, texts in tables:
      if key in texts:
        return row(status, texts[key])
  for reason, names in form.refused.items():
    if name in names:
      return row(UNSUPPORTED, reason) if value else row(IGNORED, "off, as always in simpo_jax")
  for reason, names in form.ignored.items():
    if name in names:
      return row(IGNORED, reason)
  if name in SUPPORTED_VALUES:
    supported, reason = SUPPORTED_VALUES[name]
    same = any(type(value) is type(x) and value == x for x in supported)
    return row(IGNORED, "always so in simpo_jax") if same else row(UNSUPPORTED, reason)
  return row(IGNORED, "another field takes precedence")


def _unknown(name: str, form: Form) -> str:
  """Says who has a field that this trainer does not have."""
  text = f"{form.trainer} has no such field"
  near = did_you_mean(name, form.known)
  others = [other.trainer for other in FORMS.values() if name in other.known]
  return f"{text}{near}" if near or not others else f"{text}; {others[0]} has it"
