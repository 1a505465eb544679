"""Exports of a run: by its workdir on any machine, or by itself at its end."""

import pathlib
from typing import Any

import jax

from simpo_jax import distributed, storage
from simpo_jax.checkpoint.resume import checkpoints_folder
from simpo_jax.checkpoint.saved_run import open_run
from simpo_jax.config import replace_fields
from simpo_jax.config_check import range_problem
from simpo_jax.errors import UserError
from simpo_jax.export.folder import Export, Written, check_out, write_folder
from simpo_jax.export.hf_configs import check_copied
from simpo_jax.models.weights import OpenModel
from simpo_jax.runtime.console import human_bytes
from simpo_jax.runtime.resolve import ResolvedRun
from simpo_jax.settings import FIELDS, Settings
from simpo_jax.storage.paths import brief, plain


def export_run(
  workdir: str | pathlib.Path,
  out: str | pathlib.Path,
  step: int | None = None,
  source: str | None = None,
  options: dict[str, Any] | None = None,
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
  workdir, out, options = plain(workdir), plain(out), options or {}
  if problem := "shard_gb" in options and range_problem(
    FIELDS["export.shard_gb"], options["shard_gb"]
  ):
    raise UserError(f"--shard_gb={options['shard_gb']} {problem}")
  check_out(out)
  saved = open_run(workdir, step, source, force)
  changes = {f"export.{name}": value for name, value in options.items()}
  export = Export(
    checkpoint=saved.checkpoint,
    workdir=workdir,
    out=out,
    step=saved.step,
    config=replace_fields(saved.config, changes),
    model=saved.model,
    tokenizer=saved.tokenizer,
  )
  return _text(export, write_folder(export))


def check_at_end(config: Settings, folder: storage.Path, shared: bool, model: OpenModel) -> None:
  """Raises a UserError before anything runs if there could be no export at the end."""
  if not config.export.at_end:
    return
  if not isinstance(folder, pathlib.Path):
    raise UserError(
      "--config.export.at_end=True writes to local disks only; leave it out, and run `python -m "
      "simpo_jax.export` on a local copy of the workdir"
    )
  if not shared:
    raise UserError(
      "--config.export.at_end=True needs a --workdir that all hosts see, as checkpoints do"
    )
  if jax.process_index() == 0:
    check_out(folder / "export")
    check_copied(model)


def export_at_end(config: Settings, run: ResolvedRun, folder: pathlib.Path, checkpoint: str) -> str:
  """Writes WORKDIR/export; all processes must call. Returns what to tell the user.

  Args:
    checkpoint: the name of that of the last step.
  """
  export = Export(
    checkpoint=folder / checkpoints_folder(folder).name / checkpoint,
    workdir=folder,
    out=folder / "export",
    step=config.train.steps,
    config=config,
    model=run.model,
    tokenizer=run.tokenizer,
  )
  written = write_folder(
    export,
    jax.process_index(),
    jax.process_count(),
    distributed.gather,
  )
  return _text(export, written)


def _text(export: Export, written: Written) -> str:
  """ "exported step 7: 134.5M bfloat16 weights, 256.6 MiB in 1 file, to runs/x/export"."""
  files = "1 file" if written.files == 1 else f"{written.files} files"
  return (
    f"exported step {export.step}: {written.parameters / 1e6:,.1f}M {written.dtype} weights, "
    f"{human_bytes(written.bytes)} in {files}, to {brief(export.out)}"
  )
