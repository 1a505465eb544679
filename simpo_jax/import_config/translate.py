"""From the fields of another trainer's recipe to a config, and what is said of each field."""

import math
from typing import Any, NamedTuple

from simpo_jax.config import default_config, did_you_mean
from simpo_jax.config_check import validate
from simpo_jax.errors import UserError
from simpo_jax.import_config import parts
from simpo_jax.import_config.datasets import datasets
from simpo_jax.import_config.fields import DEFAULTS, FORMS, IGNORED, KINDS, KNOWN, ONLY, SIGNS
from simpo_jax.import_config.parts import RunFacts, shown

MAPPED, IGNORES, UNSUPPORTED = "mapped", "ignored", "NOT SUPPORTED"
_KIND = {name: kind for kind, names in KINDS.items() for name in names}
_IGNORED = {name: reason for reason, names in IGNORED.items() for name in names}
_KINDS_IN_WORDS = {
  float: "a finite number",
  int: "a whole number",
  bool: "true or false",
  str: "text",
}


class Row(NamedTuple):
  """What becomes of one field of the recipe."""

  field: str
  value: str
  status: str  # MAPPED, IGNORES or UNSUPPORTED
  text: str


class Translation(NamedTuple):
  """A recipe in this project's terms."""

  settings: dict[str, Any]  # by the names of `config.flatten`
  rows: list[Row]
  prepare: list[str]  # commands that make its datasets
  workdir: str


def form_of(given: dict[str, Any], where: str) -> str:
  """Whose recipe it is, by the fields that only one of them has."""
  found = {form: [name for name in SIGNS[form] if name in given] for form in FORMS}
  if given.get("loss_type") in ("simpo", "alphapo"):
    found["trl"].append("loss_type")
  if found["trl"] and found["princeton"]:
    raise UserError(
      f"{where} has {found['trl'][0]} of TRL and {found['princeton'][0]} of princeton-nlp/SimPO, "
      "which mean different things; say whose it is with --form=trl or --form=princeton"
    )
  for form in FORMS:
    if found[form]:
      return form
  raise UserError(f"{where} could be anybody's; say whose with --form=trl or --form=princeton")


def translate(given: dict[str, Any], form: str, facts: RunFacts, where: str) -> Translation:
  """The config that trains as the recipe does.

  Args:
    given: the recipe's fields.
    form: one of `fields.FORMS`.
    facts: what a recipe does not say.
    where: its path, for messages.

  Raises:
    UserError: a value that makes no sense, or something that must be said and is not.
  """
  v = {**DEFAULTS[form], **{name: _checked(name, x, where) for name, x in given.items()}}
  if not v.get("model_name_or_path"):
    raise UserError(f"{where} names no model; add model_name_or_path to it")
  batch = parts.batch(v, facts, where)
  steps = parts.steps(v, batch.settings["train.batch_size"], facts, where)
  total = steps.settings["train.steps"]
  evaluation = parts.evaluation(v, total)
  evaluates = bool(evaluation.settings["evaluate.at_end"] or evaluation.settings["evaluate.every"])
  all_parts = [
    parts.names(v, where),
    parts.direct(v),
    datasets(v, form, facts, evaluates, where),
    parts.texts(v, form),
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
  settings, told, problems = {}, {}, {}
  for part in all_parts:
    settings |= part.settings
    told |= part.told
    problems |= part.problems
  _check(settings, where)
  rows = [_row(name, value, told, problems) for name, value in given.items()]
  for name in DEFAULTS[form]:
    if name not in given and (name in told or name in problems):
      row = _row(name, v[name], told, problems)
      rows.append(row._replace(value=f"{row.value} (default)"))
  habits = ("data.header", "data.truncation")
  rows.append(Row(f"({form})", "", MAPPED, ", ".join(f"{h} = {settings[h]}" for h in habits)))
  commands = [command for part in all_parts for command in part.prepare]
  return Translation(settings, rows, commands, str(v.get("output_dir", "runs/mine")))


def make_config(settings: dict[str, Any]):
  """The config with these settings; nobody has checked it."""
  config = default_config()
  config.update_from_flattened_dict(settings)
  return config


def _check(settings: dict[str, Any], where: str) -> None:
  try:
    validate(make_config(settings))
  except UserError as e:
    raise UserError(f"{where}: {e}") from e


def _checked(name: str, value: Any, where: str) -> Any:
  """The value in the type of its field; YAML reads 1e-6, without a point, as text."""
  kind = _KIND.get(name)
  if kind is None:
    return value
  if name.endswith("_strategy") and value is False:
    return "no"  # which YAML takes for false
  wrong = UserError(f"{where}: {name} is {shown(value)}, and must be {_KINDS_IN_WORDS[kind]}")
  if kind in (bool, str):
    if type(value) is not kind:
      raise wrong
    return value
  if type(value) not in (int, float, str):
    raise wrong
  try:
    number = float(value)
  except (ValueError, OverflowError) as e:
    raise wrong from e
  if not math.isfinite(number) or (kind is int and number != int(number)):
    raise wrong
  return kind(number)


def _row(name: str, value: Any, told: dict[str, str], problems: dict[str, str]) -> Row:
  def row(status: str, text: str) -> Row:
    return Row(shown(name), shown(value), status, text)

  if name in problems:
    return row(UNSUPPORTED, problems[name])
  if name in told:
    return row(MAPPED, told[name])
  if name in ONLY:
    harmless, why = ONLY[name]
    same = any(type(value) is type(x) and value == x for x in harmless)
    return row(IGNORES, "that is how it is here") if same else row(UNSUPPORTED, why)
  if name in _IGNORED:
    return row(IGNORES, _IGNORED[name])
  if name in KNOWN:
    return row(IGNORES, "another field decides")
  return row(UNSUPPORTED, f"neither TRL nor SimPO has this field{did_you_mean(name, KNOWN)}")
