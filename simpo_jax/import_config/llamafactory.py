"""Translates what only LLaMA-Factory's recipes have: stage, template and dataset_info.json."""

from collections.abc import Mapping
from typing import Any

from simpo_jax.errors import UserError
from simpo_jax.import_config.fields import ROWS_GIVE_ARGUMENTS
from simpo_jax.import_config.parts import (
  Part,
  Recipe,
  own_template,
  printable,
  with_frozen_dtype,
)
from simpo_jax.import_config.reading import read_json
from simpo_jax.import_config.sources import Source, Sources
from simpo_jax.storage.paths import plain

_INFO = "dataset_info.json"
_TAGS = {  # the tags of messages that are read, whatever their names in a file
  "role_tag": ("from", "role"),
  "content_tag": ("value", "content"),
  "user_tag": ("human", "user"),
  "assistant_tag": ("gpt", "assistant"),
  "system_tag": ("system",),
  "observation_tag": ("observation",),
  "function_tag": ("function_call",),
}
# Its names of columns -> fields of a row, by formatting.
_CHAT = {name: name for name in ("chosen", "rejected", "system", "tools")}
_FIELDS = {
  "alpaca": {"prompt": "instruction", "query": "input", "history": "history", **_CHAT},
  "sharegpt": {"messages": "conversations", **_CHAT},
}
_ENTRY = (
  "columns", "file_name", "folder", "formatting", "hf_hub_url", "ms_hub_url", "num_samples",
  "om_hub_url", "ranking", "split", "subset", "tags",
)  # fmt: skip


def adapt(r: Recipe) -> tuple[dict[str, Any], Part]:
  """Returns the values that follow from LLaMA-Factory's own fields, and what becomes of these.

  Raises:
    UserError: the stage is not dpo.
  """
  v = r.values
  if v["stage"] != "dpo":
    raise UserError(
      f"{r.where}: stage {printable(v['stage'])} is another training; SimPO is stage dpo with "
      "pref_loss: simpo"
    )
  half = v["max_length"] // 2
  values = {
    "use_peft": v["finetuning_type"] == "lora",
    "lora_alpha": v.get("lora_alpha", 2 * v["lora_r"]),
    "lora_target_modules": _targets(v["lora_target_modules"]),
    "gradient_checkpointing": not v.get("disable_gradient_checkpointing", False),
    "bf16": v["bf16"] or v.get("pure_bf16", False),
  }
  settings = {"data.max_prompt_length": max(half, 1)}
  mapped = {
    "stage": "simpo_jax trains SimPO only",
    "finetuning_type": "train.lora_rank" if values["use_peft"] else "train.lora_rank = 0: off",
    "do_train": "a run trains",
    "disable_gradient_checkpointing": "train.remat",
    "pure_bf16": "model.compute_dtype",
    "mix_strategy": "every pair occurs once per epoch",
    "max_samples": "in data.train",
    "enable_thinking": "the chat template decides",
  }
  if "lora_alpha" not in r.given:
    mapped["lora_r"] = f"train.lora_rank, train.lora_alpha = {values['lora_alpha']}: twice the rank"
  differs = {
    "max_length": f"data.max_length = {v['max_length']}, data.max_prompt_length = {max(half, 1)}; "
    "of longer pairs, LLaMA-Factory drops the ends of prompt and responses, by their shares; here "
    "the prompt is truncated first, on the left"
  }
  if v.get("template"):
    differs["template"] = own_template("LLaMA-Factory", v["template"])
  if v["cpo_alpha"]:
    differs["cpo_alpha"] = (
      f"simpo.sft_weight = {v['cpo_alpha']:g}; LLaMA-Factory averages over each response, then "
      "over pairs; here over all tokens of the chosen responses"
    )
  if v.get("pure_bf16") and not values["use_peft"]:
    differs["pure_bf16"] = "model.compute_dtype = bfloat16; trained weights stay float32"
  return with_frozen_dtype(values), Part(settings, mapped, _problems(v), differs)


def _targets(value: Any) -> Any:
  names = [name.strip() for name in value.split(",")] if isinstance(value, str) else value
  return ["all-linear"] if names == ["all"] else names


def _problems(v: Mapping[str, Any]) -> dict[str, str]:
  problems = {}
  if v["finetuning_type"] not in ("lora", "full"):
    problems["finetuning_type"] = "supported: lora, full"
  if v.get("do_train") is False:
    problems["do_train"] = "the recipe trains nothing"
  if v["label_smoothing"]:
    problems["label_smoothing"] = "LLaMA-Factory has none for simpo"
  if v.get("mix_strategy", "concat") != "concat":
    problems["mix_strategy"] = "supported: concat; set data.weights in the config for others"
  if v.get("enable_thinking") is False:
    problems["enable_thinking"] = ROWS_GIVE_ARGUMENTS
  return problems


def llamafactory_sources(r: Recipe) -> Sources:
  """Returns the datasets, as the dataset_info.json of `dataset_dir` describes them."""
  v = r.values
  names = {True: _list(v.get("dataset")), False: _list(v.get("eval_dataset"))}
  if not any(names.values()):
    return Sources([])
  folder = v.get("dataset_dir", "data")
  file, info, missing = plain(folder) / _INFO, {}, None
  if folder == "ONLINE" or str(folder).startswith("REMOTE:"):
    missing = f"dataset_dir {printable(folder)} is not read"
  elif not file.is_file():
    missing = f"there is no {printable(folder)}/{_INFO}, which describes it"
  else:
    info = read_json(file)
  found = []
  for is_train, listed in names.items():
    field = "dataset" if is_train else "eval_dataset"
    for name in listed:
      if missing:
        problem = f"{missing}: name the pairs with --data, or run this in LLaMA-Factory's folder"
        found.append(Source(field, name, is_train=is_train, problem=problem))
      elif not isinstance(info.get(name), dict):
        problem = f"{printable(folder)}/{_INFO} has no dataset {printable(name)}"
        found.append(Source(field, name, is_train=is_train, problem=problem))
      else:
        source = _source(field, info[name], folder)
        limits = [n for n in (source.limit, v.get("max_samples")) if n is not None]
        limit = min(limits) if limits else None
        if limit is not None and r.facts.pairs is not None and limit > r.facts.pairs:
          limit = None  # more than there are
        found.append(source._replace(is_train=is_train, limit=limit))
  return Sources(found, v["val_size"], "val_size")


def _list(value: Any) -> list[str]:
  names = value.split(",") if isinstance(value, str) else value or []
  return [str(name).strip() for name in names]


def _source(field: str, entry: Mapping[str, Any], folder: str) -> Source:
  """Reads one entry of dataset_info.json; without columns, they have the names of Alpaca's."""
  columns = entry.get("columns") or {}
  tags = entry.get("tags") or {}
  name = entry.get("hf_hub_url") or f"{folder}/{entry.get('file_name')}"
  source = Source(field, name, entry.get("split") or "train", limit=entry.get("num_samples"))
  more = [str(key) for key in entry if key not in _ENTRY]
  if more or "folder" in entry or "subset" in entry:
    return source._replace(problem=f"{_INFO}: {printable(more or entry)} is not read: use --data")
  if not entry.get("hf_hub_url") and not entry.get("file_name"):
    return source._replace(problem=f"{_INFO} names neither a file nor a Hugging Face dataset")
  if entry.get("ranking") is not True:
    return source._replace(problem=f"{_INFO} says that it has no pairs (ranking)")
  other = [tag for tag, names in _TAGS.items() if tags.get(tag, names[0]) not in names]
  fields = _FIELDS.get(entry.get("formatting", "alpaca"), {})
  unread = [name for name in columns if name not in fields and name != "response"]
  if not fields or other or unread:
    what = printable(other or unread or entry.get("formatting"))
    return source._replace(problem=f"{_INFO}: {what} is not read: use --data")
  named = {fields[name]: str(column) for name, column in columns.items() if name in fields}
  renamed = {name: column for name, column in named.items() if column and column != name}
  if "instruction" in named and "input" not in named:
    text = "a column named input would be read, too, which LLaMA-Factory does not use here"
    source = source._replace(differs=text)
  return source._replace(columns=renamed)
