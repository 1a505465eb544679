"""Translates groups of related recipe fields to config settings, one function per group."""

import math
import pathlib
import re
from typing import Any, NamedTuple

from simpo_jax.errors import UserError
from simpo_jax.import_config.fields import MISTRAL_TEMPLATE, RENAMED
from simpo_jax.settings.train import LORA_TARGETS

ADAMW = ("adamw_torch", "adamw_torch_fused", "adamw_hf", "adamw_apex_fused")
SCHEDULES = {
  "cosine": "cosine",
  "linear": "linear",
  "constant": "constant",
  "constant_with_warmup": "constant",
}
_NOTHING: dict[str, str] = {}


class RunFacts(NamedTuple):
  """Facts that a recipe does not contain, from the command line."""

  devices: int | None = None  # number that the recipe assumes
  pairs: int | None = None  # number of training pairs
  data: str | None = None  # an entry of data.train, in place of the recipe's datasets


class Part(NamedTuple):
  """The translation of a group of fields."""

  settings: dict[str, Any]  # config values by flattened name, such as "train.steps"
  mapped: dict[str, str]  # recipe field -> text about what it is mapped to
  problems: dict[str, str] = _NOTHING  # recipe field -> why it is not supported
  prepare: tuple[str, ...] = ()  # commands that prepare the datasets


def printable(value: Any) -> str:
  """Formats a value on one line of at most 60 printable characters."""
  text = " ".join(str(value).split())
  text = "".join(c if c.isprintable() else "?" for c in text)
  return text if len(text) <= 60 else text[:57] + "..."


def renamed(v: dict[str, Any]) -> Part:
  """Translates fields that only have another name in a config."""
  fields = [name for name in RENAMED if name in v]
  return Part({RENAMED[n]: v[n] for n in fields}, {n: RENAMED[n] for n in fields})


def loss(v: dict[str, Any], form: str, where: str) -> Part:
  """Translates the loss; TRL's gamma is absolute, and its cpo_alpha is 1 by default.

  Raises:
    UserError: the loss is not SimPO, or beta is not positive.
  """
  kind = v["loss_type"]
  if form == "princeton":
    if kind not in ("sigmoid", "hinge"):
      raise UserError(
        f"{where}: loss_type {printable(kind)} is not a SimPO loss; use sigmoid or hinge"
      )
    settings: dict[str, Any] = {"simpo.loss_type": kind}
    mapped = {"loss_type": "simpo.loss_type"}
    if kind == "hinge":  # SimPO's code ignores it for the hinge loss
      settings["simpo.label_smoothing"] = 0.0
      mapped["label_smoothing"] = "simpo.label_smoothing = 0: hinge has none"
    return Part(settings, mapped)
  if kind not in ("simpo", "alphapo"):
    raise UserError(
      f"{where}: loss_type {printable(kind)} is another loss; only simpo can be translated"
    )
  if v["beta"] <= 0:
    raise UserError(f"{where}: beta is {v['beta']:g}, and must be positive")
  ratio, weight = v["simpo_gamma"] / v["beta"], 0.0 if kind == "alphapo" else v["cpo_alpha"]
  mapped = {
    "loss_type": "simpo.loss_type = sigmoid",
    "simpo_gamma": f"simpo.gamma_beta_ratio = {v['simpo_gamma']:g} / {v['beta']:g} = {ratio:g}",
    "cpo_alpha": f"simpo.sft_weight = {weight:g}, for the cross-entropy of chosen responses",
  }
  settings = {"simpo.gamma_beta_ratio": ratio, "simpo.sft_weight": weight}
  return Part({**settings, "simpo.loss_type": "sigmoid"}, mapped)


def batch(v: dict[str, Any], facts: RunFacts, where: str) -> Part:
  """Translates the batch size to pairs per step over all devices.

  Raises:
    UserError: the number of devices is not given.
  """
  each, times = v["per_device_train_batch_size"], v["gradient_accumulation_steps"]
  if facts.devices is None:
    raise UserError(
      f"{where} has {each} x {times} pairs a step on each device; say with --devices=N on how "
      "many it was meant to run"
    )
  size = each * times * facts.devices
  text = f"train.batch_size = {each} x {times} x {facts.devices} devices = {size}"
  mapped = {"per_device_train_batch_size": text, "gradient_accumulation_steps": text}
  return Part({"train.batch_size": size}, mapped)


def steps(v: dict[str, Any], batch_size: int, facts: RunFacts, where: str) -> Part:
  """Translates the duration of the training.

  Raises:
    UserError: the recipe counts epochs, and the number of pairs is not given.
  """
  epochs = v["num_train_epochs"]
  if v["max_steps"] > 0:
    return Part({"train.steps": v["max_steps"]}, {"max_steps": "train.steps"})
  if facts.pairs is None:
    raise UserError(
      f"{where} trains for {epochs:g} epochs, and a config counts steps; say with --pairs=N how "
      "many pairs its training data has (python -m simpo_jax.prepare prints it)"
    )
  if epochs <= 0:
    raise UserError(f"{where}: num_train_epochs is {epochs:g}, and must be positive")
  count = max(int(epochs * facts.pairs / batch_size), 1)
  text = f"train.steps = {epochs:g} x {facts.pairs} pairs / {batch_size} = {count}"
  return Part({"train.steps": count}, {"num_train_epochs": text})


def _to_steps(x: float, total: int) -> int:
  """Converts to steps; transformers interprets values below 1 as a fraction of all steps."""
  return max(math.ceil(x * total), 1) if 0 < x < 1 else int(x)


def _steps_per_epoch(v: dict[str, Any], total: int) -> int:
  """Returns the steps per epoch; `total` if the recipe itself counts steps."""
  return total if v["max_steps"] > 0 else max(int(total / max(v["num_train_epochs"], 1)), 1)


def schedule(v: dict[str, Any], total: int) -> Part:
  """Translates the learning-rate schedule over `total` steps."""
  kind = v["lr_scheduler_type"]
  mapped, problems = {}, {}
  ratio, decides = v["warmup_ratio"], "warmup_ratio"
  if v["warmup_steps"] > 0:
    # Half a step less, since the optimizer rounds ratio * total up.
    ratio = min((_to_steps(v["warmup_steps"], total) - 0.5) / total, 1.0)
    decides = "warmup_steps"
  if kind == "constant":  # transformers ignores warmup for it
    ratio, decides = 0.0, "lr_scheduler_type"
  mapped[decides] = f"train.warmup_ratio = {ratio:g}"
  if kind in SCHEDULES:
    mapped["lr_scheduler_type"] = f"train.schedule = {SCHEDULES[kind]}" + (
      ", train.warmup_ratio = 0" if kind == "constant" else ""
    )
  else:
    problems["lr_scheduler_type"] = f"supported: {', '.join(SCHEDULES)}"
  settings = {"train.schedule": SCHEDULES.get(kind, "cosine"), "train.warmup_ratio": ratio}
  return Part(settings, mapped, problems)


def precision(v: dict[str, Any]) -> Part:
  """Translates dtypes and rematerialization."""
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


def formatting(v: dict[str, Any], form: str) -> Part:
  """Translates the formatting of pairs: chat template, truncation, tokens of the response."""
  settings = {
    "data.header": "response" if form == "princeton" else "prompt",
    "data.truncation": "princeton" if form == "princeton" else "prompt_first",
    "data.max_prompt_length": v.get("max_prompt_length", v["max_length"] - 1),
  }
  mapped = {"max_prompt_length": "data.max_prompt_length"}
  if "max_prompt_length" not in v:  # TRL 1.16 limits only prompt + response
    mapped["max_length"] = f"data.max_length, data.max_prompt_length = {v['max_length'] - 1}"
  if form == "princeton" and "mistral" in v["model_name_or_path"].lower():
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


def optimizer(v: dict[str, Any]) -> Part:
  """Translates the optimizer: any implementation of AdamW."""
  settings = {"train.optimizer": "adamw"}
  if v["optim"] in ADAMW:
    return Part(settings, {"optim": "train.optimizer = adamw"})
  return Part(settings, {}, {"optim": f"only AdamW is supported: {', '.join(ADAMW)}"})


def lora(v: dict[str, Any], where: str) -> Part:
  """Translates LoRA adapters.

  Raises:
    UserError: the rank is not positive.
  """
  if not v["use_peft"]:
    return Part({"train.lora_rank": 0}, {"use_peft": "train.lora_rank = 0: off"})
  rank, alpha = v["lora_r"], v["lora_alpha"]
  if rank < 1:
    raise UserError(f"{where}: lora_r is {rank}, and must be at least 1")
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


def evaluation(v: dict[str, Any], total: int) -> Part:
  """Translates when to evaluate on held-out pairs and to generate samples."""
  name = "evaluation_strategy" if "evaluation_strategy" in v else "eval_strategy"
  kind, mapped, every = v[name], {}, 0
  if kind == "steps":
    every = _to_steps(v.get("eval_steps", 500), total)
    mapped["eval_steps"] = f"evaluate.every = {every}"
  elif kind == "epoch":
    every = _steps_per_epoch(v, total)
  at_end = kind != "no" or v.get("do_eval", False)
  mapped[name] = f"evaluate.every = {every}"
  mapped["do_eval"] = f"evaluate.at_end = {at_end}"
  settings = {"evaluate.every": every, "evaluate.at_end": at_end}
  if "generate_during_eval" in v:
    settings["generate.every"] = every if v["generate_during_eval"] else 0
    mapped["generate_during_eval"] = f"generate.every = {settings['generate.every']}"
  return Part(settings, mapped, _strategy_problem(name, kind))


def _strategy_problem(name: str, kind: str) -> dict[str, str]:
  return {} if kind in ("no", "steps", "epoch") else {name: "supported: no, steps, epoch"}


def saving(v: dict[str, Any], total: int) -> Part:
  """Translates when to save checkpoints and how many to keep."""
  kind, mapped = v["save_strategy"], {}
  every = _to_steps(v["save_steps"], total) if kind == "steps" else 0
  if kind == "epoch":
    every = _steps_per_epoch(v, total)
  mapped["save_strategy"] = f"checkpoint.every = {every}, and at the end"
  if kind == "steps":
    mapped["save_steps"] = f"checkpoint.every = {every}"
  settings = {"checkpoint.every": every}
  if "save_total_limit" in v:
    settings["checkpoint.keep"] = max(v["save_total_limit"], 1)
    mapped["save_total_limit"] = f"checkpoint.keep = {settings['checkpoint.keep']}"
  return Part(settings, mapped, _strategy_problem("save_strategy", kind))


def run_name(v: dict[str, Any], where: str) -> Part:
  """Translates the run's name; by default the name of the recipe's file."""
  source = next((n for n in ("run_name", "hub_model_id") if v.get(n)), None)
  name = v[source] if source else pathlib.Path(where).stem
  name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "imported"
  mapped = {"output_dir": "--workdir"}
  if source:
    mapped[source] = f"name = {name}"
  return Part({"name": name}, mapped)
