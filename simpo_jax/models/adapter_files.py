"""Opens a folder of PEFT's: low-rank adapters on top of another model, which it names.

Format: `LoraConfig` and `get_peft_model_state_dict` of the `peft` package.
"""

import json
import math
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import numpy as np

from simpo_jax.errors import UserError, one_line, shown
from simpo_jax.models.config import ModelConfig
from simpo_jax.models.lora import Lora, all_tensors, merged_matrix
from simpo_jax.models.safetensors import Index, Read, Weights, open_files
from simpo_jax.models.tensor_names import plain_name
from simpo_jax.settings.train import LORA_TARGETS

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_MODEL_FILES = ("model.safetensors", "model.safetensors.index.json")
_PREFIX = "base_model.model."
_FACTOR = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
_MAX_RANK, _MAX_ALPHA = 65_536, 1e6
# Values of a LoraConfig that leave a trained adapter the sum of a matrix and a product of two.
_ALLOWED: Mapping[str, tuple[Any, ...]] = {
  "peft_type": ("LORA",),
  "task_type": (None, "CAUSAL_LM"),
  "bias": ("none",),
  # Others, such as "pissa", change the base model's weights as well.
  "init_lora_weights": (None, True, False, "gaussian", "orthogonal", "eva"),
  "revision": (None, "main"),
}
# Of training, or of which tensors there are, which the file of weights shows.
_WITHOUT_EFFECT = (
  "auto_mapping", "peft_version", "inference_mode", "exclude_modules", "layers_to_transform",
  "layers_pattern", "megatron_core", "megatron_config", "eva_config", "qalora_group_size",
  "ensure_weight_tying", "runtime_config",
)  # fmt: skip
_READ = (
  "base_model_name_or_path", "r", "lora_alpha", "use_rslora", "target_modules", "lora_dropout",
)  # fmt: skip


class Adapter(NamedTuple):
  """Adapters in a folder, checked against their base model.

  Attributes:
    path: the folder.
    base: the base model's source, as its adapter_config.json names it.
    lora: rank, alpha (with rsLoRA: that of the same scale), and the matrices.
    whole: whether every layer has an adapter for each of these matrices.
    dropout: of its training.
    merged: reads the base model's tensors with the adapters in them, by their Hugging Face names.
    apart: reads the base model's tensors as they are, and the adapters by their names in
      `lora.all_tensors`.
  """

  path: pathlib.Path
  base: str
  lora: Lora
  whole: bool
  dropout: float
  merged: Read
  apart: Read

  @property
  def note(self) -> str:
    return f"adapters of rank {self.lora.rank}, alpha {self.lora.alpha:g}, on {self.base}"


def is_adapter(folder: pathlib.Path) -> bool:
  """Whether a folder holds adapters instead of a model.

  Raises:
    UserError: it holds both.
  """
  if not (folder / CONFIG).is_file():
    return False
  models = [name for name in _MODEL_FILES if (folder / name).is_file()]
  if models and (folder / WEIGHTS).is_file():
    raise UserError(
      f"{folder} holds both a model ({models[0]}) and an adapter for {_config(folder)[0]} "
      f"({WEIGHTS}); move one of them to another folder"
    )
  return not models


def base_of(folder: pathlib.Path) -> str:
  """Returns the source of the base model that an adapter's config names; raises UserError."""
  return _config(folder)[0]


def open_adapter(folder: pathlib.Path, cfg: ModelConfig, base: Read) -> Adapter:
  """Opens adapters and checks them against the base model.

  Args:
    cfg: of the base model.
    base: reads the base model's tensors by their Hugging Face names.

  Raises:
    UserError: a file is missing or damaged, the adapter is more than LoRA's A and B, or they do
      not fit the base model.
  """
  name, config = _config(folder)
  if not (folder / WEIGHTS).is_file():
    raise UserError(f"{folder} holds {CONFIG} and no {WEIGHTS}; save the adapter as safetensors")
  stored = _factors(folder)
  rank, alpha, dropout = _numbers(folder, config)
  found = {module.rsplit(".", 1)[-1] for module in map(_module, stored.shapes)}
  lora = Lora(rank, alpha, tuple(target for target in LORA_TARGETS if target in found))
  whole = _check_factors(folder, stored.shapes, cfg, lora)
  _check_targets(folder, config.get("target_modules"), set(map(_module, stored.shapes)))

  def apart(tensor: str, index: Index) -> np.ndarray:
    return stored.read(tensor, index) if tensor in stored.shapes else base(tensor, index)

  def merged(tensor: str, index: Index) -> np.ndarray:
    value, module = base(tensor, index), tensor.removesuffix(".weight")
    if _named(module, "A") not in stored.shapes:
      return value
    rows, columns = index
    a = stored.read(_named(module, "A"), (slice(0, rank), columns))
    b = stored.read(_named(module, "B"), (rows, slice(0, rank)))
    a, b = (np.asarray(x, np.float32) for x in (a, b))
    return merged_matrix(np.asarray(value).T, a.T, b.T, lora).T

  return Adapter(folder, name, lora, whole, dropout, merged, apart)


def adapter_notes(adapter: Adapter, trained: Lora | None) -> tuple[str, ...]:
  """Says what a run makes of the adapters.

  Args:
    trained: the adapters that the settings ask for.

  Raises:
    UserError: they are others than those in the folder.
  """
  own = adapter.lora
  if trained is None:
    return ("its adapters are merged into the weights, all of which train",)
  if not adapter.whole:
    raise UserError(
      f"{adapter.path} has adapters for some layers only, and cannot go on training; "
      "--config.train.lora_rank=0 merges it into the weights and trains these"
    )
  same_scale = math.isclose(trained.alpha, own.alpha, rel_tol=1e-6)
  if (trained.rank, trained.targets) != (own.rank, own.targets) or not same_scale:
    targets = ",".join(map(repr, own.targets)) + ("," if len(own.targets) == 1 else "")
    raise UserError(
      f"{adapter.path} goes on training only as it is: --config.train.lora_rank={own.rank} "
      f'--config.train.lora_alpha={own.alpha!r} --config.train.lora_targets="({targets})"; or '
      "--config.train.lora_rank=0, which merges it into the weights and trains these"
    )
  dropout = f"; its lora_dropout={adapter.dropout:g} is not applied" if adapter.dropout else ""
  return (f"its adapters go on training{dropout}",)


def _config(folder: pathlib.Path) -> tuple[str, dict[str, Any]]:
  """The base model's source and all fields, of which none asks for more than is done here."""
  path = folder / CONFIG
  try:
    config = json.loads(path.read_text())
    base = config.get("base_model_name_or_path")
  except (OSError, ValueError, RecursionError, AttributeError) as e:
    raise UserError(f"{path} is not an adapter's config ({one_line(e)}); get it again") from e
  if not isinstance(base, str) or not base:
    raise UserError(f"{path} names no base_model_name_or_path; write the base model's there")
  for name, value in config.items():
    if name in _ALLOWED:
      refused = not any(value is v or value == v for v in _ALLOWED[name])
    else:
      refused = bool(value) and name not in (*_READ, *_WITHOUT_EFFECT)
    if refused:
      raise UserError(
        f"{path}: {name}={shown(value)} is not supported, only LoRA's A and B for "
        f"{', '.join(LORA_TARGETS)}; merge the adapter with peft (merge_and_unload)"
      )
  return base, config


def _numbers(folder: pathlib.Path, config: dict[str, Any]) -> tuple[int, float, float]:
  """Returns rank, alpha and dropout; alpha / rank is the scale, with rsLoRA too."""
  rank = config.get("r")
  if type(rank) is not int or not 1 <= rank <= _MAX_RANK:
    raise UserError(f"{folder / CONFIG}: r={shown(rank)} must be a whole number, 1 to {_MAX_RANK}")

  def number(name: str, value: object) -> float:
    # Written so that NaN fails.
    if (
      isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MAX_ALPHA
    ):
      raise UserError(f"{folder / CONFIG}: {name}={shown(value)} must be a number, 0 or more")
    return float(value)

  alpha = number("lora_alpha", config.get("lora_alpha"))
  dropout = number("lora_dropout", config.get("lora_dropout") or 0)
  return rank, alpha * math.sqrt(rank) if config.get("use_rslora") else alpha, dropout


def _factors(folder: pathlib.Path) -> Weights:
  """The factors under the names of `lora.all_tensors`, however the base model was wrapped."""
  weights = open_files(folder, [folder / WEIGHTS])
  stored: dict[str, str] = {}
  for name in weights.shapes:
    match = _FACTOR.fullmatch(name)
    if match is None:
      raise UserError(
        f"{folder / WEIGHTS} holds {name}; only LoRA's A and B for {', '.join(LORA_TARGETS)} are "
        "supported: merge the adapter with peft (merge_and_unload)"
      )
    stored[_named(plain_name(match[1]), match[2])] = name
  if not stored:
    raise UserError(f"{folder / WEIGHTS} holds no adapter; get it again")
  shapes = {name: weights.shapes[own] for name, own in stored.items()}

  def read(name: str, index: Index) -> np.ndarray:
    return weights.read(stored[name], index)

  return Weights(shapes, read)


def _named(module: str, factor: str) -> str:
  return f"{_PREFIX}{module}.lora_{factor}.weight"


def _module(name: str) -> str:
  return name.removeprefix(_PREFIX).rsplit(".", 2)[0]


def _check_factors(
  folder: pathlib.Path, found: Mapping[str, tuple[int, ...]], cfg: ModelConfig, lora: Lora
) -> bool:
  """Checks names and shapes; returns whether each layer has adapters for all matrices."""
  expected = {
    tensor.hf_name.format(layer): tensor.shape[:0:-1]
    for tensor in all_tensors(cfg, lora)["lora"].values()
    for layer in range(cfg.num_hidden_layers)
  }
  pairs = {_named(_module(name), factor) for name in found for factor in "AB"}
  for name in (*found, *pairs):
    if name not in expected:
      raise UserError(
        f"{folder / WEIGHTS} holds {name}, for which the base model has no such matrix; only "
        f"adapters of {', '.join(LORA_TARGETS)} are supported, on the model they were trained on"
      )
    if name not in found:
      raise UserError(f"{folder / WEIGHTS} lacks {name}; get it again")
    if found[name] != expected[name]:
      raise UserError(
        f"{folder / WEIGHTS}: {name} has shape {found[name]}, but the base model and r={lora.rank} "
        f"ask for {expected[name]}; correct base_model_name_or_path in its {CONFIG}"
      )
  return len(found) == len(expected)


def _check_targets(folder: pathlib.Path, given: Any, modules: set[str]) -> None:
  """Checks a list of target_modules by PEFT's rule; of other forms, the weights tell enough."""
  if not isinstance(given, list):
    return
  targets = [str(target) for target in cast(list[object], given)]

  def matches(module: str, target: str) -> bool:
    return module == target or module.endswith(f".{target}")

  absent = [t for t in targets if not any(matches(m, t) for m in modules)]
  other = [m for m in sorted(modules) if not any(matches(m, t) for t in targets)]
  if absent or other:
    raise UserError(
      f"{folder / CONFIG}: target_modules {'lists' if absent else 'lacks'} "
      f"{shown((absent or other)[0])}, which {WEIGHTS} {'lacks' if absent else 'holds'}; get both "
      "files of one adapter"
    )
