"""Translates batches, epochs, schedules and intervals to steps, rounded as transformers does."""

import math

from simpo_jax.arith import ceil_div
from simpo_jax.errors import UserError
from simpo_jax.import_config.parts import Part, Recipe, strategy_name

SCHEDULES = {
  "cosine": "cosine",
  "linear": "linear",
  "constant": "constant",
  "constant_with_warmup": "constant",
}


def batch(r: Recipe) -> Part:
  """Translates the batch size to pairs per step over all devices.

  Raises:
    UserError: the number of devices is not given, or a number is not positive.
  """
  names = ("per_device_train_batch_size", "gradient_accumulation_steps")
  each, times = (r.values[name] for name in names)
  for name in names:
    if r.values[name] < 1:
      own = r.form.own_name(name)
      raise UserError(f"{r.where}: {own} is {r.values[name]}, and must be at least 1")
  if r.facts.devices is None:
    raise UserError(
      f"{r.where} has {each} x {times} pairs a step on each device; say with --devices=N on how "
      "many it was meant to run"
    )
  size = each * times * r.facts.devices
  text = f"train.batch_size = {each} x {times} x {r.facts.devices} devices = {size}"
  return Part({"train.batch_size": size}, dict.fromkeys(names, text))


def updates_per_epoch(r: Recipe) -> int | None:
  """Returns transformers' optimizer steps per epoch; None if the number of pairs is unknown.

  The pairs of an epoch are divided into batches of a device, these over the devices, and these
  into steps (`Trainer.set_initial_training_values` of transformers 5, accelerate's
  `BatchSamplerShard`). Before transformers 4.52, an incomplete step was not counted.
  """
  if r.facts.pairs is None or r.facts.devices is None:
    return None
  v = r.values
  divide = int.__floordiv__ if v.get("dataloader_drop_last") else ceil_div
  batches = divide(divide(r.facts.pairs, v["per_device_train_batch_size"]), r.facts.devices)
  whole, rest = divmod(batches, v["gradient_accumulation_steps"])
  return max(whole + (rest > 0 and not r.form.whole_updates), 1)


def steps(r: Recipe, batch_size: int) -> Part:
  """Translates the duration of the training; `max_steps` takes precedence over epochs.

  Raises:
    UserError: the recipe counts epochs, and the number of pairs is not given; or it is too short.
  """
  v, epochs, own = r.values, r.values["num_train_epochs"], r.form.own_name
  if v["max_steps"] > 0:
    return Part({"train.steps": v["max_steps"]}, {"max_steps": "train.steps"})
  if v["max_steps"] == 0 and r.form.name != "axolotl":
    raise UserError(f"{r.where}: max_steps is 0, which trains nothing; leave it out for epochs")
  per_epoch = updates_per_epoch(r)
  if per_epoch is None or r.facts.pairs is None:
    raise UserError(
      f"{r.where} trains for {epochs:g} epochs, and a config counts steps; say with --pairs=N how "
      "many pairs its training data has (python -m simpo_jax.prepare prints it)"
    )
  if epochs <= 0:
    raise UserError(f"{r.where}: {own('num_train_epochs')} is {epochs:g}, and must be positive")
  if r.form.name == "axolotl":  # it passes max_steps to transformers
    product = r.facts.pairs * epochs / batch_size
    detail = f"{r.facts.pairs} pairs x {epochs:g} epochs / {batch_size}, rounded up"
  else:
    product = epochs * per_epoch
    detail = f"{epochs:g} epochs of {per_epoch} steps, for {r.facts.pairs} pairs"
  if not math.isfinite(product):
    raise UserError(f"{r.where}: {own('num_train_epochs')} is {epochs:g}, which is too many")
  count = math.ceil(product)
  text = f"train.steps = {count}: {detail}"
  mapped = {"num_train_epochs": text}
  if "dataloader_drop_last" in v:
    mapped["dataloader_drop_last"] = text
  return Part({"train.steps": count}, mapped)


def _to_steps(r: Recipe, name: str, x: float, total: int) -> int:
  """Converts to steps; transformers interprets values below 1 as a fraction of all steps.

  Raises:
    UserError: it is negative, or above 1 and not whole.
  """
  if x < 0 or (x > 1 and x != int(x)):
    raise UserError(
      f"{r.where}: {r.form.own_name(name)} is {x:g}, and must be a whole number of steps or a "
      "fraction below 1"
    )
  return math.ceil(x * total) if x < 1 else int(x)


def schedule(r: Recipe, total: int) -> Part:
  """Translates the learning-rate schedule over `total` steps."""
  v, kind = r.values, r.values["lr_scheduler_type"]
  mapped, problems = {}, {}
  ratio, decides = v["warmup_ratio"], "warmup_ratio"
  if v["warmup_steps"] > 0:
    warmup = _to_steps(r, "warmup_steps", v["warmup_steps"], total)
    if warmup > total:
      problems["warmup_steps"] = f"the training has {total} steps, so the warmup would never end"
    # Half a step less, since the optimizer rounds ratio * total up.
    ratio = min((warmup - 0.5) / total, 1.0)
    decides = "warmup_steps"
  if kind == "constant":  # transformers ignores warmup for it
    ratio, decides = 0.0, "lr_scheduler_type"
  count = math.ceil(ratio * total)
  mapped[decides] = f"train.warmup_ratio = {ratio:g}: {count} of {total} steps"
  if kind in SCHEDULES:
    mapped["lr_scheduler_type"] = f"train.schedule = {SCHEDULES[kind]}" + (
      ", train.warmup_ratio = 0" if kind == "constant" else ""
    )
  else:
    problems["lr_scheduler_type"] = f"supported: {', '.join(SCHEDULES)}"
  settings = {"train.schedule": SCHEDULES.get(kind, "cosine"), "train.warmup_ratio": ratio}
  return Part(settings, mapped, problems)


def evaluation(r: Recipe, total: int) -> Part:
  """Translates when to evaluate on held-out pairs and to generate samples.

  Raises:
    UserError: it evaluates by steps, and neither eval_steps nor logging_steps says how often.
  """
  v = r.values
  name = strategy_name(r)
  kind, mapped, every = v[name], {}, 0
  if kind == "steps":
    source = "eval_steps" if v.get("eval_steps") else "logging_steps"
    if not v[source]:
      raise UserError(f"{r.where}: {name} is steps; say how often with eval_steps")
    every = _to_steps(r, source, v[source], total)
    mapped[source] = f"evaluate.every = {every}"
    if source == "logging_steps":
      mapped[source] += ", as eval_steps is not set"
      mapped["eval_steps"] = f"not set: evaluate.every = {every}, by logging_steps"
  elif kind == "epoch":
    every = _steps_of_epoch(r, name)
  at_end = kind != "no" or v.get("do_eval", False)
  at_start = kind != "no" and v.get("eval_on_start", False)
  mapped[name] = f"evaluate.every = {every}"
  mapped["do_eval"] = f"evaluate.at_end = {at_end}"
  mapped["eval_on_start"] = f"evaluate.at_start = {at_start}"
  settings = {
    "evaluate.every": every,
    "evaluate.at_start": at_start,
    "evaluate.at_end": at_end,
  }
  if "generate_during_eval" in v:
    settings["generate.every"] = every if v["generate_during_eval"] else 0
    mapped["generate_during_eval"] = f"generate.every = {settings['generate.every']}"
  return Part(settings, mapped, _strategy_problem(name, kind))


def _steps_of_epoch(r: Recipe, name: str) -> int:
  """Returns the steps of an epoch, for what happens once an epoch.

  Raises:
    UserError: the number of pairs is not given.
  """
  per_epoch = updates_per_epoch(r)
  if per_epoch is None:
    raise UserError(
      f"{r.where}: {r.form.own_name(name)} is epoch, and a config counts steps; say with "
      "--pairs=N how many pairs its training data has"
    )
  return per_epoch


def _strategy_problem(name: str, kind: str) -> dict[str, str]:
  return {} if kind in ("no", "steps", "epoch") else {name: "supported: no, steps, epoch"}


def saving(r: Recipe, total: int) -> Part:
  """Translates when to save checkpoints and how many to keep."""
  v, kind, mapped, every = r.values, r.values["save_strategy"], {}, 0
  if kind == "steps":
    every = _to_steps(r, "save_steps", v["save_steps"], total)
    mapped["save_steps"] = f"checkpoint.every = {every}"
  elif kind == "epoch":
    every = _steps_of_epoch(r, "save_strategy")
  mapped["save_strategy"] = f"checkpoint.every = {every}, and at the end"
  settings = {"checkpoint.every": every}
  if "save_total_limit" in v:
    settings["checkpoint.keep"] = max(v["save_total_limit"], 1)
    mapped["save_total_limit"] = f"checkpoint.keep = {settings['checkpoint.keep']}"
  return Part(settings, mapped, _strategy_problem("save_strategy", kind))
