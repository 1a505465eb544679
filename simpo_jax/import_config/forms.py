"""The trainers whose recipes are translated, and how a recipe is recognized."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from simpo_jax.errors import UserError
from simpo_jax.import_config import axolotl_fields, fields, llamafactory_fields


class Form(NamedTuple):
  """One trainer's format of recipes.

  Attributes:
    name: value of --form.
    trainer: the trainer's name.
    markers: fields by which its recipes are recognized.
    defaults: values of fields that a recipe omits, by common name.
    common: its own names of fields -> common names (`fields.py`); equal names are not listed.
    types: {type: names} of its own fields.
    own: fields of its own that its module translates.
    ignored: {reason: names} of fields without effect on the trained weights.
    refused: {reason: names} of fields that are supported only if they are off.
    known: all its fields.
    whole_updates: whether an epoch's last, incomplete accumulation is no step, as in transformers
      before 4.52.
  """

  name: str
  trainer: str
  markers: tuple[str, ...]
  defaults: Mapping[str, Any]
  known: frozenset[str]
  common: Mapping[str, str] = {}
  types: Mapping[type, tuple[str, ...]] = {}
  own: tuple[str, ...] = ()
  ignored: Mapping[str, tuple[str, ...]] = fields.IGNORED_FIELDS
  refused: Mapping[str, tuple[str, ...]] = {}
  whole_updates: bool = False

  def own_name(self, name: str) -> str:
    """Returns the trainer's own name of a common name."""
    return next((own for own, common in self.common.items() if common == name), name)

  def is_common(self, name: str) -> bool:
    """Whether a field of the recipe is translated under a common name."""
    if name in self.common or name not in self.known:
      return name in self.common
    other = name in self.own or name in _names(self.ignored) or name in _names(self.refused)
    return name in fields.COMMON and (name == "logging_steps" or not other)


def _names(table: Mapping[str, tuple[str, ...]]) -> frozenset[str]:
  return frozenset(name for names in table.values() for name in names)


_MIXER = ("dataset_mixer", "dataset_splits", "auto_insert_empty_system_msg")
_SIMPO = ("gamma_beta_ratio", "sft_weight")
_CPO = ("simpo_gamma", "cpo_alpha")
_SCRIPT = ("dataset_name", "dataset_train_split", "dataset_test_split", "datasets")
_MIXTURE = ("dataset_mixture",)


def _transformers_form(
  name: str, trainer: str, markers: tuple[str, ...], defaults: Mapping[str, Any], *others: str
) -> Form:
  """A form of `fields.py`'s fields without those that only `others` have."""
  return Form(name, trainer, markers, defaults, fields.KNOWN - {*others})


def _llamafactory() -> Form:
  table = llamafactory_fields
  ignored = {**table.IGNORED}
  for reason, names in fields.IGNORED_FIELDS.items():
    kept = tuple(n for n in names if n not in fields.NOT_OF_TRANSFORMERS and n not in table.NAMES)
    ignored[reason] = (*ignored.get(reason, ()), *kept)
  return Form(
    "llamafactory",
    "LLaMA-Factory",
    table.MARKERS,
    table.DEFAULTS,
    (fields.KNOWN - fields.NOT_OF_TRANSFORMERS) | table.NAMES,
    table.COMMON_NAMES,
    table.TYPES,
    table.OWN,
    ignored,
    table.REFUSED,
  )


_ALL = (
  _transformers_form(
    "trl", "TRL", (*_CPO, *_SCRIPT, "dtype"), fields.TRL_DEFAULTS, *_SIMPO, *_MIXER, *_MIXTURE
  ),
  _transformers_form(
    "handbook", "the alignment handbook", _MIXTURE, fields.TRL_DEFAULTS, *_SIMPO, *_MIXER
  ),
  _transformers_form(
    "handbook_old",
    "the old alignment handbook",
    _MIXER,
    fields.OLD_HANDBOOK_DEFAULTS,
    *_SIMPO,
    *_SCRIPT,
    *_MIXTURE,
  )._replace(whole_updates=True),
  _transformers_form(
    "princeton",
    "princeton-nlp/SimPO",
    (*_SIMPO, *_MIXER),
    fields.PRINCETON_DEFAULTS,
    *_CPO,
    *_SCRIPT,
    *_MIXTURE,
  )._replace(whole_updates=True),
  _llamafactory(),
  Form(
    "axolotl",
    "axolotl",
    axolotl_fields.MARKERS,
    axolotl_fields.DEFAULTS,
    axolotl_fields.NAMES,
    axolotl_fields.COMMON_NAMES,
    axolotl_fields.TYPES,
    axolotl_fields.OWN,
    axolotl_fields.IGNORED,
    axolotl_fields.REFUSED,
  ),
)
FORMS: dict[str, Form] = {form.name: form for form in _ALL}


def markers_in(given: Mapping[str, Any], form: str) -> list[str]:
  """Returns the fields of a recipe that its form is recognized by."""
  found = [name for name in FORMS[form].markers if name in given]
  if form in ("trl", "handbook_old") and given.get("loss_type") in ("simpo", "alphapo"):
    found.append("loss_type")
  return found


def detect_form(given: Mapping[str, Any], where: str) -> str:
  """Detects a recipe's form, a key of `FORMS`, by fields that only this trainer has.

  Raises:
    UserError: the fields belong to several trainers, or to none.
  """
  # The mixer is princeton-nlp/SimPO's, too, and TRL's markers are fields of all others but it.
  found = {name: markers_in(given, name) for name in FORMS}
  simpo = [name for name in _SIMPO if name in given]
  mixer = [name for name in _MIXER if name in given]
  decisive = {
    "axolotl": found["axolotl"],
    "llamafactory": found["llamafactory"],
    "handbook": found["handbook"],
    "princeton": simpo,
    "handbook_old": mixer if not simpo else [],
  }
  candidates = [name for name, names in decisive.items() if names]
  if candidates in ([], ["princeton"]) and found["trl"]:
    candidates, decisive["trl"] = [*candidates, "trl"][::-1], found["trl"]
  if len(candidates) > 1:
    (a, x), (b, y) = ((FORMS[name].trainer, decisive[name][0]) for name in candidates[:2])
    raise UserError(
      f"{where} has {x} of {a} and {y} of {b}, which are different trainers; choose one with "
      f"--form={candidates[0]} or --form={candidates[1]}"
    )
  if candidates == ["handbook_old"] and not _cpo_in(given):
    raise UserError(
      f"{where} has {mixer[0]}, as recipes of princeton-nlp/SimPO and of the old alignment "
      "handbook do; choose one with --form=princeton or --form=handbook_old"
    )
  if not candidates:
    others = ", ".join(f"--form={name}" for name in FORMS if name not in ("trl", "princeton"))
    raise UserError(
      f"{where} could be TRL's or princeton-nlp/SimPO's; choose with --form=trl, "
      f"--form=princeton, {others}"
    )
  return candidates[0]


def _cpo_in(given: Mapping[str, Any]) -> bool:
  return any(n in given for n in _CPO) or given.get("loss_type") in ("simpo", "alphapo")
