"""Flags shared by `simpo_jax.sample` and `simpo_jax.chat`."""

from collections.abc import Sequence
from typing import Any

from absl import flags

from simpo_jax.cli import refuse_arguments
from simpo_jax.errors import UserError
from simpo_jax.settings import FIELDS
from simpo_jax.settings.field import Field

MODEL = ("model", "step", "source", "force", "dtype")
SETTINGS = (
  "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens", "stop",
  "strip_stop", "ignore_eos", "min_new_tokens", "suppress_tokens", "seed",
)  # fmt: skip


def define_flags() -> None:
  """Defines the shared flags; those not given are None."""
  flags.DEFINE_string("model", None, "Workdir of a run, Hugging Face folder, .gguf file or hub id.")
  flags.DEFINE_integer("step", None, "Checkpoint step; default: the newest.", lower_bound=0)
  flags.DEFINE_string(
    "source", None, "Current location of a run's base model; default: its model.source."
  )
  flags.DEFINE_bool(
    "force", False, "Continue even if the base model's config or tokenizer has changed."
  )
  flags.DEFINE_enum(
    "dtype",
    None,
    FIELDS["model.compute_dtype"].choices,
    "Compute dtype; auto: bfloat16, on CPU float32. Default: the run's.",
  )
  for name in SETTINGS:
    define_field(name, FIELDS[f"generate.{name}"])
  flags.DEFINE_bool("debug", False, "Show the stack trace of errors.")


def define_field(name: str, field: Field, values: flags.FlagValues = flags.FLAGS) -> None:
  """Defines a flag that sets a config field; the field's meaning is its help."""
  meaning = field.meaning
  if field.element:
    define = {str: flags.DEFINE_multi_string, int: flags.DEFINE_multi_integer}
    meaning += " May be given several times."
    define[field.element](name, None, meaning, flag_values=values)
  else:
    define = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}
    define[type(field.default)](name, None, meaning, flag_values=values)


def check(argv: Sequence[str]) -> None:
  """Raises a UserError if there are positional arguments, or --model is missing."""
  refuse_arguments(argv, "--model=runs/mine")
  if not flags.FLAGS.model:
    raise UserError("--model is missing: a workdir, a folder, a .gguf file or a hub id")


def changes(names: tuple[str, ...] = SETTINGS, **fields: str) -> dict[str, Any]:
  """Returns the config fields that flags set, with their values.

  Args:
    names: flags that set the field of `config.generate` with the same name.
    fields: the config field of each other flag, as FLAG="generate.FIELD".
  """
  by_flag = {name: f"generate.{name}" for name in names} | fields
  by_flag["dtype"] = "model.compute_dtype"
  values = {field: getattr(flags.FLAGS, name) for name, field in by_flag.items()}
  return {
    field: tuple(value) if isinstance(value, list) else value
    for field, value in values.items()
    if value is not None
  }
