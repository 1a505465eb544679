"""Files of a Hugging Face folder other than weights: configs and the tokenizer's files."""

import json
import pathlib
import shutil
from typing import Any

from simpo_jax.errors import UserError, one_line
from simpo_jax.export.byte_tokenizer import hf_byte_tokenizer
from simpo_jax.models.config import ModelConfig, RopeScaling
from simpo_jax.models.hf_config import QUANTIZATION_FIELDS, from_hf
from simpo_jax.models.weights import OpenModel
from simpo_jax.storage.paths import escapes_folder
from simpo_jax.tokenizer.gguf_tokenizer import gguf_tokenizer
from simpo_jax.tokenizer.huggingface import has_tokenizer
from simpo_jax.tokenizer.of_model import tokenizer_path
from simpo_jax.tokenizer.tokenizer import Tokenizer

# Copied from the source's folders: tokenizer files and licenses.
_TERMS = ("LICENSE*", "NOTICE*", "USE_POLICY*")
_COPIED = (
  "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.jinja",
  "chat_template*", "additional_chat_templates/*", *_TERMS,
)  # fmt: skip
# Dropped from the base model's config: a reference to code that is not copied, a local path, and
# how the weights were quantized once.
_DROPPED = ("auto_map", "_name_or_path", *QUANTIZATION_FIELDS)
_IGNORED = ("is_local", "local_files_only")  # of tokenizer_config.json; not the tokenizer's
# Names that transformers 5 writes, and the equivalents that older versions know.
_TOKENIZER_CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}


def hf_config(model: OpenModel, tokenizer: Tokenizer, dtype: str) -> dict[str, Any]:
  """config.json: the base model's if it has one, else made from its `ModelConfig`."""
  if model.path is not None and model.path.is_dir():
    found = _read_json(model.path / "config.json")
    config = _kept(found, model)
  else:
    config = {**to_hf(model.config), **_kept(_special_ids(tokenizer), model)}
    assert from_hf(config) == model.config, "to_hf leaves something out"
  # The source's own may be that of its base model, saved without the head.
  config["architectures"] = [f"{model.config.model_type.capitalize()}ForCausalLM"]
  if from_hf(config).tie_word_embeddings != model.config.tie_word_embeddings:
    config["tie_word_embeddings"] = model.config.tie_word_embeddings
  # transformers 5 writes `dtype`; all versions read `torch_dtype`.
  names = [name for name in ("dtype", "torch_dtype") if name in config] or ["torch_dtype"]
  return {**config, **dict.fromkeys(names, dtype)}


def to_hf(cfg: ModelConfig) -> dict[str, Any]:
  """Returns the fields of a config.json, in the form that transformers 4 reads as well.

  The inverse of `models.hf_config.from_hf`.
  """
  kind = cfg.model_type
  config = {
    "architectures": [f"{kind.capitalize()}ForCausalLM"],
    "model_type": kind,
    "vocab_size": cfg.vocab_size,
    "hidden_size": cfg.hidden_size,
    "intermediate_size": cfg.intermediate_size,
    "num_hidden_layers": cfg.num_hidden_layers,
    "num_attention_heads": cfg.num_attention_heads,
    "num_key_value_heads": cfg.num_key_value_heads,
    "head_dim": cfg.head_dim,
    "hidden_act": "silu",
    "rms_norm_eps": cfg.rms_norm_eps,
    "rope_theta": cfg.rope_theta,
    "rope_scaling": _rope_scaling(cfg.rope_scaling),
    "max_position_embeddings": cfg.max_position_embeddings,
    "tie_word_embeddings": cfg.tie_word_embeddings,
  }
  if kind == "mistral":
    config["sliding_window"] = cfg.sliding_window
  elif kind != "llama":
    config["use_sliding_window"] = False
  return config


def _rope_scaling(scaling: RopeScaling | None) -> dict[str, Any] | None:
  if scaling is None:
    return None
  if scaling.kind == "linear":
    return {"rope_type": "linear", "factor": scaling.factor}
  return {
    "rope_type": scaling.kind,
    "factor": scaling.factor,
    "low_freq_factor": scaling.low_freq_factor,
    "high_freq_factor": scaling.high_freq_factor,
    "original_max_position_embeddings": scaling.original_max_position_embeddings,
  }


def generation_config(model: OpenModel, tokenizer: Tokenizer) -> dict[str, Any]:
  """generation_config.json: the base model's, with all end tokens as `eos_token_id`."""
  found = {}
  if model.path is not None and (model.path / "generation_config.json").is_file():
    found = _read_json(model.path / "generation_config.json")
  eos = [i for i in tokenizer.eos_ids if i < model.config.vocab_size]
  return {
    **_kept(_special_ids(tokenizer), model),
    **_kept(found, model),
    **({"eos_token_id": eos if len(eos) > 1 else eos[0]} if eos else {}),
  }


def _kept(config: dict[str, Any], model: OpenModel) -> dict[str, Any]:
  """The fields that still hold; transformers loads no model whose pad_token_id has no row."""
  rows = model.config.vocab_size

  def holds(name: str, value: Any) -> bool:
    beyond = name.endswith("_token_id") and type(value) is int and value >= rows
    return name not in _DROPPED and not beyond

  return {name: value for name, value in config.items() if holds(name, value)}


def _special_ids(tokenizer: Tokenizer) -> dict[str, int]:
  ids = {
    "bos_token_id": tokenizer.bos_id,
    "eos_token_id": tokenizer.eos_ids[0],
    "pad_token_id": tokenizer.pad_id,
  }
  return {name: value for name, value in ids.items() if value is not None}


def check_copied_files(model: OpenModel) -> None:
  """Raises a UserError if a file that an export copies is a link out of the model's folder.

  Otherwise the author of the folder could choose a private file of this machine to be published.
  """
  configs = ("config.json", "generation_config.json")
  own = [(model.path, name) for name in configs] if model.path and model.path.is_dir() else []
  for folder, name in (*own, *_copied(model)):
    if escapes_folder(folder, name):
      raise UserError(
        f"{folder / name} is a link out of its folder, and an export would publish what it "
        "leads to; put the file itself in its place, or remove the link"
      )


def _copied(model: OpenModel) -> list[tuple[pathlib.Path, str]]:
  """The files that an export copies: a folder and a name in it. Later ones replace earlier ones."""
  home, base = tokenizer_path(model), model.path
  if home is None or base is None or not home.is_dir() or not has_tokenizer(home):
    return []
  kinds = [(home, _COPIED)] if home == base else [(base, _TERMS), (home, _COPIED)]
  return [
    (folder, name)
    for folder, globs in kinds
    for name in sorted(
      {p.relative_to(folder).as_posix() for kind in globs for p in folder.glob(kind) if p.is_file()}
    )
  ]


def write_tokenizer(folder: pathlib.Path, model: OpenModel) -> None:
  """Writes tokenizer files and chat template: copies the source's, or makes equivalent ones."""
  if copied := _copied(model):
    for origin, name in copied:
      target = folder / name
      target.parent.mkdir(exist_ok=True)
      shutil.copyfile(origin / name, target)
    return
  path = model.path
  if path is not None and path.is_file():
    hf = gguf_tokenizer(path).hf
  else:
    hf = hf_byte_tokenizer()
  hf.model_max_length = model.config.context
  hf.save_pretrained(folder)
  written = folder / "tokenizer_config.json"
  config = {name: value for name, value in _read_json(written).items() if name not in _IGNORED}
  name = config.get("tokenizer_class", "")
  config["tokenizer_class"] = _TOKENIZER_CLASSES.get(name, name)
  written.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n")


def _read_json(path: pathlib.Path) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text())
    if isinstance(value, dict):
      return value
    problem = "it is not a JSON object"
  except (OSError, ValueError, RecursionError) as e:
    problem = one_line(e)
  raise UserError(f"{path} cannot be read ({problem}); get it again")
