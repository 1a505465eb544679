"""A run's weights as a Hugging Face folder, for transformers, vLLM and llama.cpp's converter.

Reads a checkpoint's files, tensor by tensor, on any machine: no accelerator is needed, and
no more memory than one file of weights takes. Adapters (train.lora_rank) are merged.

Examples:
  python -m simpo_jax.export --workdir=runs/mine --out=mine
  python -m simpo_jax.export --workdir=runs/mine --step=100 --out=mine --dtype=bfloat16
  python -m simpo_jax.export --workdir=runs/mine --out=mine --source=/models/SmolLM2
"""

import pathlib
from collections.abc import Sequence

from absl import app, flags

from simpo_jax.cli import answering, parse_flags
from simpo_jax.config import default_config, flatten, range_problem
from simpo_jax.errors import UserError, one_line

_FLAGS = ("workdir", "step", "out", "dtype", "average", "shard_gb", "source", "force", "debug")


def _define_flags() -> None:
  flags.DEFINE_string("workdir", None, "Of the run.")
  flags.DEFINE_integer("step", None, "Of the checkpoint; default: the newest.", lower_bound=0)
  flags.DEFINE_string("out", None, "The folder to write; an earlier export in it is replaced.")
  flags.DEFINE_enum(
    "dtype",
    None,
    ["auto", "float32", "bfloat16", "float16"],
    "Of the exported weights; auto: as the run has them. Default: the run's export.dtype.",
  )
  flags.DEFINE_bool(
    "average", None, "Averaged weights, where the run has them. Default: the run's export.average."
  )
  flags.DEFINE_float(
    "shard_gb", None, "The most that one file has, in 10^9 bytes. Default: the run's."
  )
  flags.DEFINE_string(
    "source", None, "Where the model that the run began with is now; default: its model.source."
  )
  flags.DEFINE_bool(
    "force", False, "Export although config or tokenizer of that model have changed since."
  )
  flags.DEFINE_bool("debug", False, "Show the stack trace of errors.")


def main(argv: Sequence[str]) -> None:
  """Writes the folder; exit code 0 when it is there and whole."""
  values = flags.FLAGS
  if len(argv) > 1:
    raise UserError(f"unexpected argument {argv[1]!r}; flags look like --workdir=runs/mine")
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
      pathlib.Path(values.workdir).expanduser(),
      pathlib.Path(values.out).expanduser(),
      values.step,
      values.source,
      options,
      values.force,
    )
  )


def export_run(
  workdir: pathlib.Path,
  out: pathlib.Path,
  step: int | None = None,
  source: str | None = None,
  options: dict | None = None,
  force: bool = False,
) -> str:
  """Exports a run's checkpoint, and returns what to tell the user.

  Args:
    workdir: of the run.
    out: the folder to write.
    step: of the checkpoint; None: the newest.
    source: the model that the run began with, if it is no longer where it was.
    options: fields of `config.export`; the others are the run's.
    force: do so although the model's config or tokenizer have changed since.

  Raises:
    UserError: there is no such checkpoint, it is damaged, or the folder cannot be had.
  """
  from simpo_jax.checkpoint import damage, read_about
  from simpo_jax.data.tokenizer import load_tokenizer
  from simpo_jax.export.at_end import written_text
  from simpo_jax.export.folder import Export, check_out, write_folder
  from simpo_jax.fingerprint import model_fields
  from simpo_jax.weights import open_model

  options = options or {}
  if problem := "shard_gb" in options and range_problem("export.shard_gb", options["shard_gb"]):
    raise UserError(f"--shard_gb={options['shard_gb']} {problem}")
  check_out(out)
  checkpoint = _checkpoint(workdir, step)
  if problem := damage(checkpoint):
    raise UserError(f"{checkpoint} is damaged ({problem}); name another with --step")
  about = read_about(checkpoint)
  config = _config(checkpoint, about)
  config.export.update(options)
  source = source or config.model.source
  model, tokenizer = open_model(source), load_tokenizer(source)
  identity = about.get("identity", {})
  now = model_fields(model, tokenizer)
  if changed := [name for name in now if identity.get(name, now[name]) != now[name]]:
    if not force:
      raise UserError(
        f"{source} is not what {workdir} began with: its {' and '.join(changed)} differ; name "
        "the right one with --source, or say --force"
      )
  export = Export(checkpoint, workdir, out, about["position"]["step"], config, model, tokenizer)
  return written_text(export, write_folder(export))


def _checkpoint(workdir: pathlib.Path, step: int | None) -> pathlib.Path:
  """The folder of the newest checkpoint, or of the last one after this step."""
  from simpo_jax.checkpoint import positions
  from simpo_jax.resume import checkpoints_folder

  if not workdir.is_dir():
    raise UserError(f"--workdir={workdir} is no folder; name the folder of a run")
  folder = checkpoints_folder(workdir)
  there = positions(folder)
  if not there:
    raise UserError(
      f"--workdir={workdir} holds no checkpoint; a run saves one at its end, and every so many "
      "steps with --config.checkpoint.every"
    )
  found = [p for p in there if step in (None, p.step)]
  if not found:
    steps = ", ".join(str(s) for s in sorted({p.step for p in there}))
    raise UserError(f"--step={step}: {workdir} has no such checkpoint; it has those of {steps}")
  return folder / found[-1].name


def _config(checkpoint: pathlib.Path, about: dict):
  """The run's config; fields that it did not have yet are at their defaults."""
  config = default_config()
  known = flatten(config)
  try:
    found = {
      name: tuple(value) if isinstance(value, list) else value
      for name, value in flatten(about["config"]).items()
      if name in known
    }
    config.update_from_flattened_dict(found)
  except (KeyError, TypeError, AttributeError) as e:
    raise UserError(
      f"{checkpoint} was written by another version of simpo_jax ({one_line(e)}); export it with "
      "that one"
    ) from e
  return config


def _main(argv: Sequence[str]) -> None:
  answering(main, argv)


def _parse(argv: Sequence[str]) -> Sequence[str]:
  return parse_flags(argv, _FLAGS)


if __name__ == "__main__":
  _define_flags()
  app.run(_main, flags_parser=_parse)
