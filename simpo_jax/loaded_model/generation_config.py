"""Reads the generation settings that a model recommends, from its generation_config.json.

What the file says is applied, or told to the user as not applied.
"""

import json
from typing import Any, NamedTuple

from simpo_jax.config_check import kind_problem, range_problem
from simpo_jax.data.prompts import SETTINGS
from simpo_jax.errors import UserError, shown
from simpo_jax.generate.stop_automaton import MAX_BYTES
from simpo_jax.models.weights import OpenModel
from simpo_jax.settings import FIELDS

_FILE = "its generation_config.json"
_NAMES = {name: name for name in (*SETTINGS, "min_new_tokens", "suppress_tokens")}
_FIELD_OF = {**_NAMES, "stop_strings": "stop"}  # {key of the file: field of `config.generate`}
# Settings that only sampling uses, with their defaults in `transformers.GenerationConfig` (for
# `min_p`, which has none: what is without effect).
_OF_SAMPLING = {
  "temperature": 1.0, "top_k": 50, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0,
  "epsilon_cutoff": 0.0, "eta_cutoff": 0.0, "top_h": None,
}  # fmt: skip
# Its defaults: a setting with this value asks for nothing, nor does one that is None or empty.
_DEFAULTS = {
  **_OF_SAMPLING, "max_length": 20, "min_length": 0, "early_stopping": False, "num_beams": 1,
  "num_beam_groups": 1, "diversity_penalty": 0.0, "length_penalty": 1.0, "penalty_alpha": 0.0,
  "repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0,
  "encoder_no_repeat_ngram_size": 0, "renormalize_logits": False, "remove_invalid_values": False,
  "token_healing": False, "guidance_scale": 1.0, "num_return_sequences": 1,
}  # fmt: skip
# Settings that do not change the text of an answer, only how it is computed or returned. Two are
# read elsewhere: `do_sample` below, `eos_token_id` with the tokenizer.
_NO_EFFECT = {
  "do_sample", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id",
  "use_cache", "cache_implementation", "cache_config", "max_cache_len", "return_legacy_cache",
  "output_attentions", "output_hidden_states", "output_logits", "output_scores",
  "return_dict_in_generate", "is_assistant", "num_assistant_tokens",
  "num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_early_exit",
  "assistant_ensemble_weight", "assistant_lookbehind", "target_lookbehind",
  "prompt_lookup_num_tokens", "max_matching_ngram_size", "speculation_type", "use_mtp",
  "compile_config", "disable_compile", "continuous_batching_config", "low_memory",
  "prefill_chunk_size", "transformers_version", "_from_model_config",
}  # fmt: skip


class Recommended(NamedTuple):
  """The settings of a generation_config.json.

  Attributes:
    settings: those applied, as fields of `config.generate`.
    notes: what is not applied, one line for each reason.
  """

  settings: dict[str, Any]
  notes: list[str]


def read_generation_config(model: OpenModel) -> Recommended:
  """Reads the recommended settings; none if the model has no such file.

  Raises:
    UserError: the file is not a JSON object.
  """
  path = None if model.path is None else model.path / "generation_config.json"
  if path is None or not path.is_file():
    return Recommended({}, [])
  try:
    content = json.loads(path.read_text())
    given = {name: value for name, value in content.items() if _is_set(name, value)}
  except (OSError, ValueError, RecursionError, AttributeError, TypeError) as e:
    raise UserError(f"{path} is not readable JSON ({e}); fix or remove it") from e
  sampled, settings, notes, unsupported = bool(given.get("do_sample")), {}, [], {}
  unused = {} if sampled else {name: given.pop(name) for name in _OF_SAMPLING if name in given}
  if "max_new_tokens" in given:
    given.pop("max_length", None)  # over which it takes precedence
  for name, value in given.items():
    if name in _FIELD_OF:
      setting = _to_setting(name, value)
      if problem := _problem(name, setting, model.config.vocab_size):
        notes.append(f"{_FILE}: {name}={shown(value)} {problem}; not applied")
      else:
        settings[_FIELD_OF[name]] = setting
    elif name not in _NO_EFFECT:
      unsupported[name] = value
  unused = {name: value for name, value in unused.items() if value != _DEFAULTS[name]}
  if unused:
    notes.append(f"{_FILE} sets {_listed(unused)} without do_sample, which has no effect")
  if unsupported:
    notes.append(f"{_FILE} sets {_listed(unsupported)}, which is not supported and not applied")
  return Recommended({"temperature": 1.0, **settings} if sampled else settings, notes)


def drop_excessive_minimum(recommended: Recommended, max_new_tokens: int) -> Recommended:
  """Drops a recommended `min_new_tokens` above `max_new_tokens`, and notes it."""
  settings, minimum = recommended.settings, recommended.settings.get("min_new_tokens", 0)
  if minimum <= max_new_tokens:
    return recommended
  note = f"{_FILE}: min_new_tokens={minimum} exceeds max_new_tokens={max_new_tokens}; not applied"
  rest = {name: value for name, value in settings.items() if name != "min_new_tokens"}
  return Recommended(rest, [*recommended.notes, note])


def _is_set(name: str, value: Any) -> bool:
  """Whether the file gives a setting a value that can have an effect."""
  return value not in (None, [], {}) and (name in _FIELD_OF or value != _DEFAULTS.get(name))


def _to_setting(name: str, value: Any) -> Any:
  """Converts a value of the file to the type of its field."""
  if name == "stop_strings" and isinstance(value, str):
    return (value,)
  return tuple(value) if isinstance(value, list) else value


def _problem(name: str, value: Any, vocab_size: int) -> str | None:
  """Returns what is wrong with the value of a supported setting, or None."""
  if name == "suppress_tokens":
    if isinstance(value, tuple) and all(type(i) is int and 0 <= i < vocab_size for i in value):
      return None
    return f"must be a list of token ids below {vocab_size}"
  if name == "stop_strings":
    if _are_stop_strings(value):
      return None
    return f"must be strings, none of them empty, of at most {MAX_BYTES} bytes together"
  field = FIELDS[f"generate.{name}"]
  return kind_problem(field, value) or range_problem(field, value)


def _are_stop_strings(value: Any) -> bool:
  if not isinstance(value, tuple) or not all(isinstance(s, str) and s for s in value):
    return False
  try:
    return sum(len(s.encode()) for s in value) <= MAX_BYTES
  except UnicodeEncodeError:  # a lone surrogate
    return False


def _listed(values: dict[str, Any]) -> str:
  return ", ".join(f"{name} {shown(value)}" for name, value in values.items())
