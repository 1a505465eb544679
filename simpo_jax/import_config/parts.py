"""Translates groups of related recipe fields to config settings, one function per group."""

import math
import pathlib
import re
from typing import Any, NamedTuple

from simpo_jax.errors import UserError
from simpo_jax.import_config.fields import MISTRAL_TEMPLATE, RENAMED
from simpo_jax.import_config.forms import Form
from simpo_jax.settings.train import LORA_TARGETS

_NOTHING: dict[str, str] = {}


class RunFacts(NamedTuple):
  """Facts that a recipe does not contain, from the command line."""

  devices: int | None = None  # number that the recipe assumes
  pairs: int | None = None  # number of training pairs
  data: str | None = None  # an entry of data.train, in place of the recipe's datasets


class Part(NamedTuple):
  """The translation of a group of fields; fields are named by their common names.

  Attributes:
    settings: config values by flattened name, such as "train.steps".
    mapped: field -> text about what it is mapped to.
    problems: field -> why it is not supported.
    differs: field -> what the trainer does, and what this project does in its place.
    prepare: commands that prepare the datasets.
  """

  settings: dict[str, Any]
  mapped: dict[str, str] = _NOTHING
  problems: dict[str, str] = _NOTHING
  differs: dict[str, str] = _NOTHING
  prepare: tuple[str, ...] = ()


class Recipe(NamedTuple):
  """A recipe, in the terms of all trainers.

  Attributes:
    values: by common name, with its trainer's defaults.
    given: the fields of the file, by its trainer's names.
    form: its trainer's format.
    where: its path, for messages.
  """

  values: dict[str, Any]
  given: frozenset[str]
  form: Form
  facts: RunFacts
  where: str


def printable(value: Any) -> str:
  """Formats a value on one line of at most 60 printable characters."""
  text = " ".join(str(value).split())
  text = "".join(c if c.isprintable() else "?" for c in text)
  return text if len(text) <= 60 else text[:57] + "..."


def renamed(r: Recipe) -> Part:
  """Translates fields that only have another name in a config."""
  fields = [name for name in RENAMED if name in r.values and name not in r.form.own]
  return Part({RENAMED[n]: r.values[n] for n in fields}, {n: RENAMED[n] for n in fields})


def loss(r: Recipe) -> Part:
  """Translates the loss; gamma is absolute in all trainers but princeton-nlp/SimPO.

  Raises:
    UserError: the loss is not SimPO, or beta is not positive.
  """
  v, kind, own = r.values, r.values["loss_type"], r.form.own_name
  if r.form.name == "princeton":
    return _princeton_loss(r)
  if kind not in ("simpo", "alphapo") or (kind == "alphapo" and r.form.own):
    raise UserError(
      f"{r.where}: {own('loss_type')} {printable(kind)} is another loss; only simpo can be "
      "translated"
    )
  if v.get("simpo_gamma") is None:
    raise UserError(f"{r.where} has no simpo_gamma, and {r.form.trainer} has no default; add it")
  beta, gamma = v["beta"], v["simpo_gamma"]
  if beta <= 0:
    raise UserError(f"{r.where}: {own('beta')} is {beta:g}, and must be positive")
  ratio, weight = gamma / beta, 0.0 if kind == "alphapo" else v["cpo_alpha"]
  mapped = {
    "loss_type": "simpo.loss_type = sigmoid",
    "simpo_gamma": f"simpo.gamma_beta_ratio = {gamma:g} / {beta:g} = {ratio:g}",
    "cpo_alpha": f"simpo.sft_weight = {weight:g}, for the cross-entropy of chosen responses",
  }
  settings = {"simpo.gamma_beta_ratio": ratio, "simpo.sft_weight": weight}
  return Part({**settings, "simpo.loss_type": "sigmoid"}, mapped)


def _princeton_loss(r: Recipe) -> Part:
  kind = r.values["loss_type"]
  if kind not in ("sigmoid", "hinge"):
    raise UserError(
      f"{r.where}: loss_type {printable(kind)} is not a SimPO loss; use sigmoid or hinge"
    )
  settings: dict[str, Any] = {"simpo.loss_type": kind}
  mapped = {"loss_type": "simpo.loss_type"}
  if kind == "hinge":  # SimPO's code ignores it for the hinge loss
    settings["simpo.label_smoothing"] = 0.0
    mapped["label_smoothing"] = "simpo.label_smoothing = 0: hinge has none"
  return Part(settings, mapped)


def precision(r: Recipe) -> Part:
  """Translates dtypes and rematerialization."""
  v = r.values
  compute = "bfloat16" if v["bf16"] else "float32"
  remat = "full" if v["gradient_checkpointing"] else "none"
  mapped = {
    "bf16": f"model.compute_dtype = {compute}",
    "gradient_checkpointing": f"train.remat = {remat}",
  }
  problems, weights = {}, "float32"
  for name in ("dtype", "torch_dtype"):
    if v.get(name) == "bfloat16" and not v["use_peft"]:
      compute = "bfloat16"
      mapped[name] = "model.compute_dtype = bfloat16; trained weights are float32"
      mapped["bf16"] = f"model.compute_dtype = bfloat16, set by {name}"
    elif v.get(name) in ("float32", "bfloat16"):
      weights = v[name]
      mapped[name] = f"model.param_dtype = {weights}"
    elif name in v:
      problems[name] = "use float32 or bfloat16"
  settings = {"model.compute_dtype": compute, "model.param_dtype": weights, "train.remat": remat}
  return Part(settings, mapped, problems)


def with_frozen_dtype(values: dict[str, Any]) -> dict[str, Any]:
  """Adds the dtype of weights beside adapters, where it is that of the computation."""
  return {**values, "torch_dtype": "bfloat16"} if values["bf16"] and values["use_peft"] else values


def own_template(trainer: str, name: Any) -> str:
  """Says that a trainer has a text of its own for a chat template that it names."""
  return (
    f"the model's own chat template is used, or data.chat_template; {trainer}'s {printable(name)} "
    "is a text of its own: compare them"
  )


def strategy_name(r: Recipe) -> str:
  """Returns the field that says when to evaluate; its old name comes first, if it is given."""
  return "evaluation_strategy" if "evaluation_strategy" in r.values else "eval_strategy"


def formatting(r: Recipe) -> Part:
  """Translates the formatting of pairs: chat template, truncation, tokens of the response."""
  v, princeton = r.values, r.form.name == "princeton"
  mixer = princeton or r.form.name == "handbook_old"  # one code, in which the header is answered
  settings = {
    "data.header": "response" if mixer else "prompt",
    "data.truncation": "princeton" if mixer else "prompt_first",
    "data.max_prompt_length": v.get("max_prompt_length", v["max_length"] - 1),
  }
  mapped = {"max_prompt_length": "data.max_prompt_length"}
  if "max_prompt_length" not in v:  # TRL 1.16 limits only prompt + response
    mapped["max_length"] = f"data.max_length, data.max_prompt_length = {v['max_length'] - 1}"
  if princeton and "mistral" in v["model_name_or_path"].lower():
    settings["data.chat_template"] = MISTRAL_TEMPLATE
    mapped["model_name_or_path"] = (
      "model.source, data.chat_template (run_simpo.py's template for Mistral)"
    )
    mapped["chat_template"] = "replaced by run_simpo.py's template for Mistral"
  empty = "auto_insert_empty_system_msg"
  if v.get(empty) is not None:
    settings["data.empty_system"] = v[empty]
    mapped[empty] = "data.empty_system"
  return Part(settings, mapped)


def lora(r: Recipe) -> Part:
  """Translates LoRA adapters.

  Raises:
    UserError: the rank is not positive.
  """
  v = r.values
  if not v["use_peft"]:
    return Part({"train.lora_rank": 0}, {"use_peft": "train.lora_rank = 0: off"})
  rank, alpha = v["lora_r"], v["lora_alpha"]
  if rank < 1:
    own = r.form.own_name("lora_r")
    raise UserError(f"{r.where}: {own} is {rank}, and must be at least 1")
  if v.get("use_rslora"):  # rsLoRA scales by alpha / sqrt(r), LoRA by alpha / r
    alpha *= math.sqrt(rank)
  mapped = {
    "use_peft": "train.lora_rank",
    "lora_r": "train.lora_rank",
    "lora_alpha": f"train.lora_alpha = {alpha:g}",
    "use_rslora": "included in train.lora_alpha",
    "lora_dropout": "0: adapters have no dropout",
  }
  problems = {}
  if v["lora_dropout"]:
    problems["lora_dropout"] = "adapters have no dropout; set lora_dropout: 0 in the recipe"
  # PEFT's default for these models.
  targets = v.get("lora_target_modules", ["q_proj", "v_proj"])
  targets = [targets] if isinstance(targets, str) else targets
  if targets == ["all-linear"]:
    targets = list(LORA_TARGETS)
  mapped["lora_target_modules"] = f"train.lora_targets = {printable(targets)}"
  if not (isinstance(targets, list) and targets and {*map(str, targets)} <= {*LORA_TARGETS}):
    problems["lora_target_modules"] = f"supported: {', '.join(LORA_TARGETS)}, or all-linear"
    targets = LORA_TARGETS
  settings = {
    "train.lora_rank": rank,
    "train.lora_alpha": float(alpha),
    "train.lora_targets": tuple(targets),
  }
  return Part(settings, mapped, problems)


def run_name(r: Recipe) -> Part:
  """Translates the run's name; by default the name of the recipe's file."""
  v = r.values
  source = next((n for n in ("run_name", "hub_model_id") if v.get(n)), None)
  name = v[source] if source else pathlib.Path(r.where).stem
  name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "imported"
  mapped = {"output_dir": "--workdir"}
  if source:
    mapped[source] = f"name = {name}"
  return Part({"name": name}, mapped)
