"""The flags that `simpo_jax.sample` and `simpo_jax.chat` have in common."""

from collections.abc import Sequence
from typing import Any

from absl import flags

from simpo_jax.cli import refuse_arguments
from simpo_jax.errors import UserError

_DTYPES = ["auto", "float32", "bfloat16"]
MODEL = ("model", "step", "source", "force", "dtype")
SETTINGS = (
  "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "stop",
  "ignore_eos", "seed",
)  # fmt: skip


def define_flags() -> None:
  """Defines them; what is not given is None."""
  flags.DEFINE_string(
    "model", None, "The workdir of a run, a Hugging Face folder, a .gguf file or a hub id."
  )
  flags.DEFINE_integer("step", None, "Of a run's checkpoint; default: the newest.", lower_bound=0)
  flags.DEFINE_string(
    "source", None, "Where the model that a run began with is now; default: its model.source."
  )
  flags.DEFINE_bool(
    "force", False, "Go on although config or tokenizer of that model have changed since."
  )
  flags.DEFINE_enum(
    "dtype",
    None,
    _DTYPES,
    "Of the computation; auto: bfloat16, on CPU float32. Default: the run's.",
  )
  flags.DEFINE_float("temperature", None, "0: greedy; otherwise at least 0.01.")
  flags.DEFINE_integer("top_k", None, "Sample from so many best tokens; 0: all.")
  flags.DEFINE_float("top_p", None, "Sample from the best tokens with this probability; 1: all.")
  flags.DEFINE_float("min_p", None, "Leave out tokens below this part of the best one's; 0: none.")
  flags.DEFINE_float("repetition_penalty", None, "On tokens that were there before; 1: none.")
  flags.DEFINE_integer("max_new_tokens", None, "The most tokens of an answer.")
  flags.DEFINE_multi_string("stop", None, "Text that ends an answer; may be given several times.")
  flags.DEFINE_bool("ignore_eos", None, "Go on after end tokens.")
  flags.DEFINE_integer("seed", None, "Of sampling.")
  flags.DEFINE_bool("debug", False, "Show the stack trace of errors.")


def check(argv: Sequence[str]) -> None:
  """Raises a UserError unless there are flags alone, and one of them names the model."""
  refuse_arguments(argv, "--model=runs/mine")
  if not flags.FLAGS.model:
    raise UserError("--model is missing: a workdir, a folder, a .gguf file or a hub id")


def changes(names: tuple[str, ...] = SETTINGS, **fields: str) -> dict[str, Any]:
  """The fields of a config that the flags set, with their values.

  Args:
    names: of flags that set the field of `config.generate` of that name.
    fields: flag="generate.field" where the names differ.
  """
  places = {name: f"generate.{name}" for name in names} | fields | {"dtype": "model.compute_dtype"}
  found = {place: getattr(flags.FLAGS, name) for name, place in places.items()}
  return {
    place: tuple(value) if isinstance(value, list) else value
    for place, value in found.items()
    if value is not None
  }
