"""The model card, README.md: what was trained on what, how, and what came of it."""

import json
import pathlib
import re
from typing import Any

import huggingface_hub

from simpo_jax.config import flatten
from simpo_jax.data.prepared.dataset import hub_datasets
from simpo_jax.models.source import has_random_weights
from simpo_jax.models.weights import OpenModel
from simpo_jax.settings import Settings

# Shown whatever they are; of the other fields, those that are not at their defaults.
_ALWAYS = (
  "data.max_length", "train.steps", "train.batch_size", "train.learning_rate", "simpo.beta",
  "simpo.gamma_beta_ratio",
)  # fmt: skip
# What says nothing about the weights, or only where something lay.
_UNTOLD = (
  "name", "model.source", "data.train", "data.eval", "data.dir", "generate.", "checkpoint.",
  "watchdog.", "profile.", "log.", "export.",
)  # fmt: skip
_METRICS = (
  "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies",
  "logps/chosen", "logps/rejected", "length/chosen", "length/rejected",
)  # fmt: skip


def model_card(
  workdir: pathlib.Path,
  config: Settings,
  model: OpenModel,
  chats: bool,
  step: int,
  averaged: bool,
  dtype: str,
) -> str:
  """The text of README.md; names files and folders without their places.

  Args:
    workdir: of the run, for its metrics and its record.
    config: of the run.
    model: that the run began with.
    chats: whether there is a chat template.
    step: that the weights are of.
    averaged: whether they are averages over the steps.
    dtype: of the exported weights.
  """
  hub_id = _hub_id(model)
  datasets = {d for spec in config.data.train for d in hub_datasets(spec, config.data.dir)}
  matter = huggingface_hub.ModelCardData(
    base_model=hub_id,
    datasets=sorted(datasets) or None,
    library_name="transformers",
    pipeline_tag="text-generation",
    tags=["simpo", "preference-optimization", "simpo_jax"],
  )
  parts = [
    f"---\n{matter.to_yaml()}\n---",
    f"# {_text(config.name)}",
    _what(config, step, averaged, dtype, hub_id),
    _USE.format(prompt=_CHAT if chats else _TEXT),
    "## Results",
    _results(_metrics(workdir, step)) or "No metrics were found beside the weights.",
    "## Settings",
    _table(("setting", "value"), _settings(config)),
    _made_with(workdir),
  ]
  return "\n\n".join(part for part in parts if part) + "\n"


_CHAT, _TEXT = '[{"role": "user", "content": "Who are you?"}]', '"Once upon a time"'
_USE = """## Use

```python
from transformers import pipeline

answer = pipeline("text-generation", model="FOLDER_OR_ID_OF_THIS_MODEL")
print(answer({prompt}, max_new_tokens=256)[0]["generated_text"])
```

llama.cpp's `convert_hf_to_gguf.py FOLDER` makes a GGUF of it; vLLM (`vllm serve FOLDER`), which \
has not been tried, should serve it. The terms of the base model go on to apply."""


def _hub_id(model: OpenModel) -> str | None:
  """Where the hub has the model, if it came from there."""
  cached = f"models--{model.name.replace('/', '--')}"
  return model.name if model.path is not None and cached in model.path.parts else None


def _metrics(workdir: pathlib.Path, step: int) -> list[dict[str, Any]]:
  """The rows up to a step; none where they are gone."""
  try:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["step"] <= step]
  except (OSError, ValueError, LookupError, TypeError):
    return []


def _what(config: Settings, step: int, averaged: bool, dtype: str, hub_id: str | None) -> str:
  source = config.model.source
  if has_random_weights(source):
    base = "a model with random weights"
  elif hub_id:
    base = f"[{_text(hub_id)}](https://huggingface.co/{hub_id})"
  else:
    base = f"`{_name(source)}`"
  of = ", ".join(f"`{_name(entry)}`" for entry in config.data.train)
  notes = [f"The weights are {dtype}"]
  if averaged:
    notes.append(f"moving averages over the steps (decay {config.train.ema_decay:g})")
  if config.train.lora_rank:
    notes.append(f"with adapters of rank {config.train.lora_rank} merged into them")
  return (
    f"{base[0].upper()}{base[1:]}, tuned with SimPO ([arXiv:2405.14734]"
    f"(https://arxiv.org/abs/2405.14734)) for {step} step{'s' if step != 1 else ''} of "
    f"{config.train.batch_size} preference pairs of {of}. {', '.join(notes)}."
  )


def _results(rows: list[dict[str, Any]]) -> str:
  """First and last of training and of evaluation, side by side."""
  columns = {}
  for mode, name in (("train", "training"), ("evaluate", "held out")):
    of_mode = [row for row in rows if row.get("mode") == mode]
    for row in (of_mode[0], of_mode[-1]) if of_mode else ():
      columns[f"{name}, step {row['step']}"] = row
  table = [
    (f"`{name}`", *(_number(row.get(name)) for row in columns.values()))
    for name in _METRICS
    if any(name in row for row in columns.values())
  ]
  if not table:
    return ""
  return _table(("metric", *columns), table) + (
    "\n\nRewards are beta times the average log-probability of a response's tokens; margins and "
    "accuracies leave gamma out."
  )


def _settings(config: Settings) -> list[tuple[str, str]]:
  default = flatten(Settings())
  return [
    (f"`{name}`", f"`{_text(_name(value) if isinstance(value, str) else str(value))}`")
    for name, value in flatten(config).items()
    if name in _ALWAYS or (value != default[name] and not name.startswith(_UNTOLD))
  ]


def _made_with(workdir: pathlib.Path) -> str:
  try:
    record = json.loads((workdir / "run.json").read_text())
    devices, versions = record["devices"], record["versions"]
    return (
      f"Trained on {devices['count']} x {_text(str(devices['kind']))} with simpo_jax "
      f"{_text(str(versions['simpo-jax']))}, jax {_text(str(versions['jax']))}."
    )
  except (OSError, ValueError, LookupError, TypeError):
    return ""


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
  lines = [head, ("---",) * len(head), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: Any) -> str:
  return f"{value:.4f}" if isinstance(value, int | float) else ""


def _name(text: str) -> str:
  """The last part of a path: where it lay is nobody's business."""
  return _text(pathlib.PurePath(text).name)


def _text(text: str) -> str:
  """Text that can neither end a table's cell nor begin anything of Markdown or HTML."""
  return re.sub(r"[|`<>\[\]\n\r]", " ", text)
