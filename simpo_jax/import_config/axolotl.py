"""Translates what only axolotl's recipes have: adapters, intervals per epoch, types of datasets."""

from collections.abc import Mapping
from typing import Any

from simpo_jax.errors import UserError
from simpo_jax.import_config.fields import FROZEN_DTYPES
from simpo_jax.import_config.parts import (
  Part,
  Recipe,
  own_template,
  printable,
  with_frozen_dtype,
)
from simpo_jax.import_config.sources import ROW, Source, Sources, entries_of, unknown_key

_ENTRY = (
  "path", "split", "type", "data_files", "ds_type", "revision", "field_messages", "field_chosen",
  "field_rejected",
)  # fmt: skip
_USER_DEFINED = (
  "field_system", "field_prompt", "field_chosen", "field_rejected", "prompt_format",
  "chosen_format", "rejected_format",
)  # fmt: skip
# What a dataset's type does to rows.
_CHAT = ("chat_template", "chat_template.default")
_FULL = ("chat_template.argilla_chat",)
_NAMED = ("chatml", "llama3", "zephyr")  # templates that are written out in axolotl
_OF_MESSAGES = ("argilla_chat", "ultra")
_OF_STRINGS = {"intel": "question", "icr": "input", "prompt_pairs": "prompt"}  # the user's turn


def adapt(r: Recipe) -> tuple[dict[str, Any], Part]:
  """Returns the values that follow from axolotl's own fields, and what becomes of these.

  Raises:
    UserError: a field is missing that axolotl requires.
  """
  v = r.values
  for name in ("learning_rate", *(("lora_r", "lora_alpha") if v.get("adapter") else ())):
    if v.get(name) is None:
      raise UserError(f"{r.where} has no {name}, which axolotl requires; add it")
  values, mapped, problems, differs = {}, {}, {}, {}
  for part in (_numbers(r), _adapter(v), _precision(v), _intervals(r), _texts(v)):
    values |= part.settings
    mapped |= part.mapped
    problems |= part.problems
    differs |= part.differs
  settings = values.pop("config")
  return with_frozen_dtype(values), Part(settings, mapped, problems, differs)


def _numbers(r: Recipe) -> Part:
  """Translates fields that stand for others: the batch of a device, beta, no limit of steps."""
  v, values, mapped = r.values, {"max_steps": r.values["max_steps"] or -1}, {}
  if v.get("batch_size"):
    mapped["batch_size"] = "train.batch_size, by gradient_accumulation_steps"
    if "gradient_accumulation_steps" not in r.given:
      each = max(v["per_device_train_batch_size"], 1)
      values["gradient_accumulation_steps"] = max(v["batch_size"] // each, 1)
  if v.get("dpo_beta"):
    mapped["dpo_beta"] = "simpo.beta, unless rl_beta is given"
    if "rl_beta" not in r.given:
      values["beta"] = v["dpo_beta"]
  return Part(values, mapped)


def _adapter(v: Mapping[str, Any]) -> Part:
  kind = v.get("adapter")
  values: dict[str, Any] = {"use_peft": bool(kind)}
  if v.get("lora_target_linear"):
    values["lora_target_modules"] = ["all-linear"]
  elif kind and not v.get("lora_target_modules"):
    values["lora_target_modules"] = []
  mapped = {
    "adapter": "train.lora_rank" if kind else "train.lora_rank = 0: off",
    "lora_target_linear": "train.lora_targets",
    "load_in_4bit": "off: weights are float32 or bfloat16",
    "load_in_8bit": "off: weights are float32 or bfloat16",
  }
  problems = {}
  if kind not in (None, "lora"):
    problems["adapter"] = "supported: lora; frozen weights are not quantized"
  for name in ("load_in_4bit", "load_in_8bit"):
    if v.get(name):
      problems[name] = FROZEN_DTYPES
  return Part(values, mapped, problems)


def _precision(v: Mapping[str, Any]) -> Part:
  given, problems = v.get("bf16"), {}
  if given not in (None, True, False, "auto", "full"):
    problems["bf16"] = "supported: true, false, auto, full"
  bf16 = bool(given or v.get("bfloat16"))
  remat = v["gradient_checkpointing"]
  text = f"model.compute_dtype = {'bfloat16' if bf16 else 'float32'}"
  mapped = {"bfloat16": text}
  if given == "auto":
    mapped["bf16"] = f"{text}, as on GPUs that have it"
  return Part({"bf16": bf16, "gradient_checkpointing": bool(remat)}, mapped, problems)


def _intervals(r: Recipe) -> Part:
  """Translates evaluations and checkpoints: shares of all steps if they are counted per epoch."""
  v, values, mapped = r.values, {}, {}
  for kind in ("eval", "save"):
    count = v.get(f"{kind}s_per_epoch")
    if count and v["num_train_epochs"] > 0:
      share = 1 / (count * v["num_train_epochs"])
      if share < 1:
        values[f"{kind}_steps"] = share
        mapped[f"{kind}s_per_epoch"] = f"{kind}_steps = {share:g} of all steps"
      else:
        text = f"once or less in the training, so {kind}_strategy decides"
        mapped[f"{kind}s_per_epoch"] = text
  eval_steps = values.get("eval_steps", v.get("eval_steps"))
  strategy = v.get("evaluation_strategy") or ("eval_strategy" in r.given and v["eval_strategy"])
  if not v["val_set_size"] and not v.get("test_datasets"):
    values["eval_strategy"] = "no"
    mapped["evals_per_epoch"] = mapped["eval_steps"] = "no held-out pairs: no evaluation"
  elif eval_steps or strategy:
    values |= {"eval_strategy": "steps" if eval_steps else strategy, "eval_on_start": True}
  if "evaluation_strategy" in v:
    values["evaluation_strategy"] = values.get("eval_strategy", "no")
  save_steps = values.get("save_steps") or ("save_steps" in r.given and v["save_steps"])
  values["save_strategy"] = "steps" if save_steps else v["save_strategy"]
  return Part(values, mapped)


def _texts(v: Mapping[str, Any]) -> Part:
  """Translates the chat template, special tokens, and what becomes of long pairs."""
  length, long = v["max_length"], v["excess_length_strategy"]
  config: dict[str, Any] = {"data.max_prompt_length": max(length // 2, 1)}
  mapped, problems, differs = {}, {}, {}
  if long == "truncate":
    config["data.max_prompt_length"] = length - 1
    mapped["excess_length_strategy"] = "data.truncation = prompt_first"
  elif long in ("drop", "raise"):
    verb = "drops" if long == "drop" else "refuses"
    text = f"axolotl {verb} pairs that are longer; here they are truncated"
    differs["excess_length_strategy"] = text
    differs["max_length"] = (
      f"data.max_length = {length}, data.max_prompt_length = {max(length // 2, 1)}; {text}"
    )
  else:
    problems["excess_length_strategy"] = "supported: drop, truncate, raise"
  name, jinja = v.get("chat_template"), v.get("chat_template_jinja")
  if jinja and name in (None, "jinja"):
    config["data.chat_template"] = jinja
    mapped["chat_template"] = mapped["chat_template_jinja"] = "data.chat_template"
  elif name and str(name).startswith("tokenizer_default"):
    mapped["chat_template"] = "the model's own"
    mapped["chat_template_jinja"] = "not used by axolotl"
  elif name:
    differs["chat_template"] = own_template("axolotl", name)
  tokens = v.get("special_tokens") or {}
  mapped["special_tokens"] = "pairs are not padded with a token"
  if not isinstance(tokens, dict) or {*tokens} - {"pad_token"}:
    problems["special_tokens"] = "the model's tokenizer is used as it is"
  return Part({"config": config}, mapped, problems, differs)


def after_steps(r: Recipe, total: int) -> tuple[dict[str, Any], dict[str, str]]:
  """Returns the warmup and the logging interval, which follow from the number of steps."""
  v, share = r.values, r.values["warmup_ratio"]
  if "warmup_steps" in r.given:
    warmup = v["warmup_steps"]
  elif "warmup_ratio" in r.given:
    warmup = max(int(share * total), 0)
  else:
    warmup = min(int(0.03 * total), 100)
  warmup = 2 if warmup == 1 else warmup
  values: dict[str, Any] = {"warmup_steps": warmup, "warmup_ratio": 0.0}
  if v.get("logging_steps") is None:
    values["logging_steps"] = max(min(int(0.005 * total), 10), 1)
  text = f"a warmup of {warmup:g} of {total} steps, as axolotl rounds it"
  return values, {"warmup_ratio": text, "warmup_steps": text}


def axolotl_sources(r: Recipe) -> Sources:
  """Returns the datasets, with the columns that their types and field_* name."""
  v, found = r.values, []
  for field in ("datasets", "test_datasets"):
    if v.get(field) is not None:
      for entry in entries_of(v[field], field, "path", r.where):
        found += _sources_of(field, entry)
  return Sources(found, 0 if v.get("test_datasets") else v["val_set_size"], "val_set_size")


def _sources_of(field: str, entry: Mapping[str, Any]) -> list[Source]:
  columns, problem, differs = _columns(entry)
  problem = unknown_key(entry, field, _ENTRY) or problem
  path, files = entry["path"], entry.get("data_files")
  if entry.get("revision") not in (None, "main"):
    problem = "revision: download that revision, and name its files with --data"
  files = [files] if isinstance(files, str) else files
  if files is not None and path not in ("json", "parquet"):
    problem = problem or "data_files: prepare these files, and name them with --data"
  names = files if files and not problem else [path]
  source = Source(field, path, entry.get("split") or "train", columns=columns)
  source = source._replace(is_train=field == "datasets", problem=problem, differs=differs)
  return [source._replace(name=name) for name in names]


def _columns(entry: Mapping[str, Any]) -> tuple[dict[str, str], str | None, str | None]:
  """Returns {field: column}, a problem, and what axolotl does otherwise with these rows."""
  kind, problem, differs = entry.get("type"), None, None
  chosen = {name: entry.get(f"field_{name}") or name for name in ("chosen", "rejected")}
  template, _, rows = str(kind).partition(".")
  if isinstance(kind, dict):
    problem = unknown_key(kind, "type", _USER_DEFINED)
    columns = {name: kind.get(f"field_{name}") or name for name in ROW}
    formats = [name for name in ROW if kind.get(f"{name}_format") not in (None, f"{{{name}}}")]
    if formats and not problem:
      problem = f"{formats[0]}_format: rows are read as they are; prepare a file, and use --data"
  elif kind in _CHAT:
    columns = {"messages": entry.get("field_messages") or "messages", **chosen}
  elif kind in _FULL:
    columns = chosen
  elif kind is None or template == "passthrough":
    columns = {}
  elif template in _NAMED and rows in (*_OF_MESSAGES, *_OF_STRINGS):
    columns = {"instruction": _OF_STRINGS[rows]} if rows in _OF_STRINGS else {}
    differs = own_template("axolotl", template)
  else:
    columns = {}
    problem = (
      f"type {printable(kind)} is not read: prepare a file with messages, and name it with --data"
    )
  return {k: str(c) for k, c in columns.items() if k != c}, problem, differs
