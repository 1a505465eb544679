"""Exports a run's weights as a Hugging Face folder, for transformers, vLLM and llama.cpp.

Reads a checkpoint tensor by tensor, on any machine: needs no accelerator, and no more memory
than one file of weights. Adapters (train.lora_rank) are merged.

Examples:
  python -m simpo_jax.export --workdir=runs/mine --out=mine
  python -m simpo_jax.export --workdir=runs/mine --step=100 --out=mine --dtype=bfloat16
  python -m simpo_jax.export --workdir=runs/mine --out=mine --source=/models/SmolLM2
"""

from collections.abc import Sequence

from absl import flags

from simpo_jax.cli import refuse_arguments, run_program
from simpo_jax.errors import UserError

_FLAGS = ("workdir", "step", "out", "dtype", "average", "shard_gb", "source", "force", "debug")


def _define_flags() -> None:
  flags.DEFINE_string("workdir", None, "Workdir of the run.")
  flags.DEFINE_integer("step", None, "Checkpoint step; default: the newest.", lower_bound=0)
  flags.DEFINE_string("out", None, "Output folder; an earlier export there is replaced.")
  flags.DEFINE_enum(
    "dtype",
    None,
    ["auto", "float32", "bfloat16", "float16"],
    "Dtype of the exported weights; auto: that of the run. Default: the run's export.dtype.",
  )
  flags.DEFINE_bool(
    "average", None, "Export the averaged weights, if any. Default: the run's export.average."
  )
  flags.DEFINE_float("shard_gb", None, "Maximum file size in 10^9 bytes. Default: the run's.")
  flags.DEFINE_string(
    "source", None, "Current location of the base model; default: the run's model.source."
  )
  flags.DEFINE_bool(
    "force", False, "Export even if the base model's config or tokenizer has changed."
  )
  flags.DEFINE_bool("debug", False, "Show the stack trace of errors.")


def main(argv: Sequence[str]) -> None:
  """Writes the folder; exit code 0 only if it is complete."""
  from simpo_jax.export.runs import export_run

  values = flags.FLAGS
  refuse_arguments(argv, "--workdir=runs/mine")
  for name in ("workdir", "out"):
    if not getattr(values, name):
      raise UserError(f"--{name} is missing; see --help")
  options = {
    name: getattr(values, name)
    for name in ("dtype", "average", "shard_gb")
    if getattr(values, name) is not None
  }
  print(
    export_run(
      values.workdir,
      values.out,
      values.step,
      values.source,
      options,
      values.force,
    )
  )


if __name__ == "__main__":
  _define_flags()
  run_program(main, _FLAGS)
