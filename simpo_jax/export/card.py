"""The model card, README.md: base model, data, settings and results."""

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

# Always listed; other fields are listed if they differ from their defaults.
_ALWAYS_LISTED = (
  "data.max_length", "train.steps", "train.batch_size", "train.learning_rate", "simpo.beta",
  "simpo.gamma_beta_ratio",
)  # fmt: skip
# Never listed: fields that do not affect the weights, and paths.
_NEVER_LISTED = (
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
  """Returns the text of README.md, with paths reduced to their last part.

  Args:
    workdir: of the run, for metrics.jsonl and run.json.
    config: of the run.
    model: what the run began with.
    chats: whether there is a chat template.
    step: training step of the weights.
    averaged: whether the weights are moving averages.
    dtype: of the exported weights.
  """
  datasets = {d for spec in config.data.train for d in hub_datasets(spec, config.data.dir)}
  front_matter = huggingface_hub.ModelCardData(
    base_model=_hub_id(_base_source(model), model.path),
    datasets=sorted(datasets) or None,
    library_name="transformers",
    pipeline_tag="text-generation",
    tags=["simpo", "preference-optimization", "simpo_jax"],
  )
  parts = [
    f"---\n{front_matter.to_yaml()}\n---",
    f"# {_escape(config.name)}",
    _summary(config, model, step, averaged, dtype),
    _USE.format(prompt=_CHAT if chats else _TEXT),
    "## Results",
    _results(_metrics(workdir, step)) or "No metrics were found in the workdir.",
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
has not been tried, should serve it. The license of the base model still applies."""


def _base_source(model: OpenModel) -> str:
  """The source of the base model: of the whole one, if the run began with an adapter."""
  return model.adapter.base if model.adapter else model.name


def _hub_id(source: str, path: pathlib.Path | None) -> str | None:
  """The hub id that a source is, if it was opened from the hub's cache, at `path`."""
  cached = f"models--{source.replace('/', '--')}"
  return source if path is not None and cached in path.parts else None


def _linked(source: str, path: pathlib.Path | None) -> str:
  if hub_id := _hub_id(source, path):
    return f"[{_escape(hub_id)}](https://huggingface.co/{hub_id})"
  return f"`{_base_name(source)}`"


def _metrics(workdir: pathlib.Path, step: int) -> list[dict[str, Any]]:
  """The rows of metrics.jsonl up to a step; none if the file cannot be read."""
  try:
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["step"] <= step]
  except (OSError, ValueError, LookupError, TypeError):
    return []


def _summary(config: Settings, model: OpenModel, step: int, averaged: bool, dtype: str) -> str:
  if has_random_weights(model.name):
    base = "A model with random weights"
  else:
    base = _linked(_base_source(model), model.path)
  if model.adapter:
    base += f" with the adapter {_linked(model.name, model.adapter.path)}"
  datasets = ", ".join(f"`{_base_name(entry)}`" for entry in config.data.train)
  notes = [f"The weights are {dtype}"]
  if averaged:
    notes.append(f"moving averages over the steps (decay {config.train.ema_decay:g})")
  if config.train.lora_rank:
    notes.append(f"with adapters of rank {config.train.lora_rank} merged into them")
  return (
    f"{base}, tuned with SimPO ([arXiv:2405.14734]"
    f"(https://arxiv.org/abs/2405.14734)) for {step} step{'s' if step != 1 else ''} of "
    f"{config.train.batch_size} preference pairs of {datasets}. {', '.join(notes)}."
  )


def _results(rows: list[dict[str, Any]]) -> str:
  """A table of the first and the last metrics of training and of evaluation."""
  columns = {}
  for mode, name in (("train", "training"), ("evaluate", "held out")):
    mode_rows = [row for row in rows if row.get("mode") == mode]
    for row in (mode_rows[0], mode_rows[-1]) if mode_rows else ():
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
    "accuracies do not include gamma."
  )


def _settings(config: Settings) -> list[tuple[str, str]]:
  default = flatten(Settings())
  return [
    (f"`{name}`", f"`{_escape(_base_name(value) if isinstance(value, str) else str(value))}`")
    for name, value in flatten(config).items()
    if name in _ALWAYS_LISTED or (value != default[name] and not name.startswith(_NEVER_LISTED))
  ]


def _made_with(workdir: pathlib.Path) -> str:
  try:
    record = json.loads((workdir / "run.json").read_text())
    devices, versions = record["devices"], record["versions"]
    return (
      f"Trained on {devices['count']} x {_escape(str(devices['kind']))} with simpo_jax "
      f"{_escape(str(versions['simpo-jax']))}, jax {_escape(str(versions['jax']))}."
    )
  except (OSError, ValueError, LookupError, TypeError):
    return ""


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
  lines = [head, ("---",) * len(head), *rows]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: Any) -> str:
  return f"{value:.4f}" if isinstance(value, int | float) else ""


def _base_name(text: str) -> str:
  """The last part of a path; the rest would reveal the folders of a private machine."""
  return _escape(pathlib.PurePath(text).name)


def _escape(text: str) -> str:
  """Replaces characters that have a meaning in a Markdown table or in HTML."""
  return re.sub(r"[|`<>\[\]\n\r]", " ", text)
