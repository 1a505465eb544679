"""The groups of fields that mean something together, each by itself: fields to settings."""

import math
import pathlib
import re
from typing import Any, NamedTuple

from simpo_jax.errors import UserError
from simpo_jax.import_config.fields import DIRECT, MISTRAL_TEMPLATE
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
  """What a recipe leaves to the command line."""

  devices: int | None = None  # that the recipe was meant for
  pairs: int | None = None  # of its training data
  data: str | None = None  # an entry of data.train, in place of the recipe's datasets


class Part(NamedTuple):
  """What a group of fields becomes."""

  settings: dict[str, Any]  # by the names of `config.flatten`
  told: dict[str, str]  # of each field of the recipe, what it becomes
  problems: dict[str, str] = _NOTHING  # of each field that cannot be had, why
  prepare: tuple[str, ...] = ()  # commands that make the datasets


def shown(value: Any) -> str:
  """A value on one line, cut where it is long; nothing in it reaches a terminal as a command."""
  text = " ".join(str(value).split())
  text = "".join(c if c.isprintable() else "?" for c in text)
  return text if len(text) <= 60 else text[:57] + "..."


def direct(v: dict[str, Any]) -> Part:
  """Fields that have another name here, and the same meaning."""
  fields = [name for name in DIRECT if name in v]
  return Part({DIRECT[n]: v[n] for n in fields}, {n: DIRECT[n] for n in fields})


def loss(v: dict[str, Any], form: str, where: str) -> Part:
  """TRL's gamma is absolute, and its term on the chosen responses is on unless it says 0."""
  kind = v["loss_type"]
  if form == "princeton":
    if kind not in ("sigmoid", "hinge"):
      raise UserError(f"{where}: loss_type {shown(kind)} is not SimPO's; sigmoid and hinge are")
    settings: dict[str, Any] = {"simpo.loss_type": kind}
    told = {"loss_type": "simpo.loss_type"}
    if kind == "hinge":  # whose code passes over it
      settings["simpo.label_smoothing"] = 0.0
      told["label_smoothing"] = "simpo.label_smoothing = 0: hinge has none"
    return Part(settings, told)
  if kind not in ("simpo", "alphapo"):
    raise UserError(
      f"{where}: loss_type {shown(kind)} trains by another loss; only simpo is translated"
    )
  if v["beta"] <= 0:
    raise UserError(f"{where}: beta is {v['beta']:g}, and must be positive")
  ratio, weight = v["simpo_gamma"] / v["beta"], 0.0 if kind == "alphapo" else v["cpo_alpha"]
  told = {
    "loss_type": "simpo.loss_type = sigmoid",
    "simpo_gamma": f"simpo.gamma_beta_ratio = {v['simpo_gamma']:g} / {v['beta']:g} = {ratio:g}",
    "cpo_alpha": f"simpo.sft_weight = {weight:g}, of the chosen responses' cross-entropy",
  }
  settings = {"simpo.gamma_beta_ratio": ratio, "simpo.sft_weight": weight}
  return Part({**settings, "simpo.loss_type": "sigmoid"}, told)


def batch(v: dict[str, Any], facts: RunFacts, where: str) -> Part:
  """Pairs of a step, over all devices."""
  each, times = v["per_device_train_batch_size"], v["gradient_accumulation_steps"]
  if facts.devices is None:
    raise UserError(
      f"{where} asks for {each} x {times} pairs a step on each device; say with --devices=N on how "
      "many it was meant to run"
    )
  size = each * times * facts.devices
  text = f"train.batch_size = {each} x {times} x {facts.devices} devices = {size}"
  told = {"per_device_train_batch_size": text, "gradient_accumulation_steps": text}
  return Part({"train.batch_size": size}, told)


def steps(v: dict[str, Any], batch_size: int, facts: RunFacts, where: str) -> Part:
  """How long it trains."""
  epochs = v["num_train_epochs"]
  if v["max_steps"] > 0:
    return Part({"train.steps": v["max_steps"]}, {"max_steps": "train.steps"})
  if facts.pairs is None:
    raise UserError(
      f"{where} trains for {epochs:g} epochs, here steps are counted; say with --pairs=N how many "
      "pairs its training data has (python -m simpo_jax.prepare tells)"
    )
  if epochs <= 0:
    raise UserError(f"{where}: num_train_epochs is {epochs:g}, and must be positive")
  count = max(int(epochs * facts.pairs / batch_size), 1)
  text = f"train.steps = {epochs:g} x {facts.pairs} pairs / {batch_size} = {count}"
  return Part({"train.steps": count}, {"num_train_epochs": text})


def _in_steps(x: float, total: int) -> int:
  """What transformers gives below 1 is a share of all steps."""
  return max(math.ceil(x * total), 1) if 0 < x < 1 else int(x)


def _epoch(v: dict[str, Any], total: int) -> int:
  """Steps of an epoch; all of them if the recipe counts in steps itself."""
  return total if v["max_steps"] > 0 else max(int(total / max(v["num_train_epochs"], 1)), 1)


def schedule(v: dict[str, Any], total: int) -> Part:
  """The learning rate's way; `total` steps."""
  kind = v["lr_scheduler_type"]
  told, problems = {}, {}
  ratio, decides = v["warmup_ratio"], "warmup_ratio"
  if v["warmup_steps"] > 0:
    # Half a step less, so that rounding up gives this very number.
    ratio = min((_in_steps(v["warmup_steps"], total) - 0.5) / total, 1.0)
    decides = "warmup_steps"
  if kind == "constant":  # transformers' has no warm-up, whatever is asked for
    ratio, decides = 0.0, "lr_scheduler_type"
  told[decides] = f"train.warmup_ratio = {ratio:g}"
  if kind in SCHEDULES:
    told["lr_scheduler_type"] = f"train.schedule = {SCHEDULES[kind]}" + (
      ", train.warmup_ratio = 0" if kind == "constant" else ""
    )
  else:
    problems["lr_scheduler_type"] = f"there are {', '.join(SCHEDULES)}"
  settings = {"train.schedule": SCHEDULES.get(kind, "cosine"), "train.warmup_ratio": ratio}
  return Part(settings, told, problems)


def precision(v: dict[str, Any]) -> Part:
  """What is computed and kept in which type, and what is computed again."""
  compute = "bfloat16" if v["bf16"] else "float32"
  remat = "full" if v["gradient_checkpointing"] else "none"
  told = {
    "bf16": f"model.compute_dtype = {compute}",
    "gradient_checkpointing": f"train.remat = {remat}",
  }
  problems, weights = {}, "float32"
  for name in ("dtype", "torch_dtype"):
    if v.get(name) == "bfloat16" and not v["use_peft"]:
      compute = "bfloat16"
      told[name] = "model.compute_dtype = bfloat16; the weights that train are float32"
      told["bf16"] = f"model.compute_dtype = bfloat16, as {name} says"
    elif v.get(name) in ("float32", "bfloat16"):
      weights = v[name]
      told[name] = f"model.param_dtype = {weights}"
    elif name in v:
      problems[name] = "say float32 or bfloat16"
  settings = {"model.compute_dtype": compute, "model.param_dtype": weights, "train.remat": remat}
  return Part(settings, told, problems)


def texts(v: dict[str, Any], form: str) -> Part:
  """How a pair is written, where it is cut, and which tokens count as its response."""
  settings = {
    "data.header": "response" if form == "princeton" else "prompt",
    "data.truncation": "princeton" if form == "princeton" else "prompt_first",
    "data.max_prompt_length": v.get("max_prompt_length", v["max_length"] - 1),
  }
  told = {"max_prompt_length": "data.max_prompt_length"}
  if "max_prompt_length" not in v:  # TRL 1.16: a prompt is not cut, as far as there is room
    told["max_length"] = f"data.max_length, data.max_prompt_length = {v['max_length'] - 1}"
  if form == "princeton" and "mistral" in v["model_name_or_path"].lower():
    settings["data.chat_template"] = MISTRAL_TEMPLATE
    told["model_name_or_path"] = "model.source, data.chat_template (the script's own for Mistral)"
    told["chat_template"] = "the script's own for Mistral takes its place"
  empty = "auto_insert_empty_system_msg"
  if v.get(empty) is not None:
    settings["data.empty_system"] = v[empty]
    told[empty] = "data.empty_system"
  return Part(settings, told)


def optimizer(v: dict[str, Any]) -> Part:
  """AdamW, whoever computes it."""
  settings = {"train.optimizer": "adamw"}
  if v["optim"] in ADAMW:
    return Part(settings, {"optim": "train.optimizer = adamw"})
  return Part(settings, {}, {"optim": f"AdamW is what there is: {', '.join(ADAMW)}"})


def lora(v: dict[str, Any], where: str) -> Part:
  """Adapters, if the recipe trains them."""
  if not v["use_peft"]:
    return Part({"train.lora_rank": 0}, {"use_peft": "train.lora_rank = 0: off"})
  rank, alpha = v["lora_r"], v["lora_alpha"]
  if rank < 1:
    raise UserError(f"{where}: lora_r is {rank}, and must be at least 1")
  if v.get("use_rslora"):  # scales by alpha / sqrt(r), where we scale by alpha / r
    alpha *= math.sqrt(rank)
  told = {
    "use_peft": "train.lora_rank",
    "lora_r": "train.lora_rank",
    "lora_alpha": f"train.lora_alpha = {alpha:g}",
    "use_rslora": "in train.lora_alpha",
    "lora_dropout": "0, as here",
  }
  problems = {}
  if v["lora_dropout"]:
    problems["lora_dropout"] = "adapters have no dropout; the recipe can say lora_dropout: 0"
  # What PEFT takes for these models where nothing is said.
  targets = v.get("lora_target_modules", ["q_proj", "v_proj"])
  targets = [targets] if isinstance(targets, str) else targets
  if targets == ["all-linear"]:
    targets = list(LORA_TARGETS)
  told["lora_target_modules"] = f"train.lora_targets = {shown(targets)}"
  if not (isinstance(targets, list) and targets and {*map(str, targets)} <= {*LORA_TARGETS}):
    problems["lora_target_modules"] = f"there are {', '.join(LORA_TARGETS)}, or all-linear"
    targets = LORA_TARGETS
  settings = {
    "train.lora_rank": rank,
    "train.lora_alpha": float(alpha),
    "train.lora_targets": tuple(targets),
  }
  return Part(settings, told, problems)


def evaluation(v: dict[str, Any], total: int) -> Part:
  """When held-out pairs are looked at, and samples made."""
  name = "evaluation_strategy" if "evaluation_strategy" in v else "eval_strategy"
  kind, told, every = v[name], {}, 0
  if kind == "steps":
    every = _in_steps(v.get("eval_steps", 500), total)
    told["eval_steps"] = f"evaluate.every = {every}"
  elif kind == "epoch":
    every = _epoch(v, total)
  at_end = kind != "no" or v.get("do_eval", False)
  told[name] = f"evaluate.every = {every}"
  told["do_eval"] = f"evaluate.at_end = {at_end}"
  settings = {"evaluate.every": every, "evaluate.at_end": at_end}
  if "generate_during_eval" in v:
    settings["generate.every"] = every if v["generate_during_eval"] else 0
    told["generate_during_eval"] = f"generate.every = {settings['generate.every']}"
  return Part(settings, told, _strategy(name, kind))


def _strategy(name: str, kind: str) -> dict[str, str]:
  return {} if kind in ("no", "steps", "epoch") else {name: "there are no, steps and epoch"}


def saving(v: dict[str, Any], total: int) -> Part:
  """Checkpoints."""
  kind, told = v["save_strategy"], {}
  every = _in_steps(v["save_steps"], total) if kind == "steps" else 0
  if kind == "epoch":
    every = _epoch(v, total)
  told["save_strategy"] = f"checkpoint.every = {every}, and at the end"
  if kind == "steps":
    told["save_steps"] = f"checkpoint.every = {every}"
  settings = {"checkpoint.every": every}
  if "save_total_limit" in v:
    settings["checkpoint.keep"] = max(v["save_total_limit"], 1)
    told["save_total_limit"] = f"checkpoint.keep = {settings['checkpoint.keep']}"
  return Part(settings, told, _strategy("save_strategy", kind))


def names(v: dict[str, Any], where: str) -> Part:
  """What the run is called."""
  source = next((n for n in ("run_name", "hub_model_id") if v.get(n)), None)
  name = v[source] if source else pathlib.Path(where).stem
  name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80] or "imported"
  told = {"output_dir": "--workdir"}
  if source:
    told[source] = f"name = {name}"
  return Part({"name": name}, told)
