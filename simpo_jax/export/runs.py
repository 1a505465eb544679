"""Exports a run: from its workdir on any machine, or at the end of the run."""

import pathlib
from typing import Any

import jax

from simpo_jax import distributed, storage
from simpo_jax.checkpoint.resume import checkpoints_folder
from simpo_jax.checkpoint.saved_run import open_run
from simpo_jax.config import replace_fields
from simpo_jax.config_check import range_problem
from simpo_jax.errors import UserError
from simpo_jax.export.folder import Export, Written, check_output_folder, write_folder
from simpo_jax.export.hf_configs import check_copied_files
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
  """Exports a run's checkpoint, and returns a summary for the user.

  Args:
    workdir: of the run.
    out: the folder to write.
    step: of the checkpoint; None: the newest.
    source: current location of the base model, if it was moved.
    options: fields of `config.export` that override the run's.
    force: continue even if the base model's config or tokenizer has changed.

  Raises:
    UserError: there is no such checkpoint, it is damaged, or the folder cannot be written.
  """
  workdir, out, options = plain(workdir), plain(out), options or {}
  if problem := "shard_gb" in options and range_problem(
    FIELDS["export.shard_gb"], options["shard_gb"]
  ):
    raise UserError(f"--shard_gb={options['shard_gb']} {problem}")
  check_output_folder(out)
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
  return _summary(export, write_folder(export))


def check_export_at_end(
  config: Settings, workdir: storage.Path, shared: bool, model: OpenModel
) -> None:
  """Raises a UserError at the start of a run if its export at the end would fail.

  Args:
    shared: whether all hosts see the workdir.
  """
  if not config.export.at_end:
    return
  if not isinstance(workdir, pathlib.Path):
    raise UserError(
      "--config.export.at_end=True writes to local disks only; leave it out, and run `python -m "
      "simpo_jax.export` on a local copy of the workdir"
    )
  if not shared:
    raise UserError(
      "--config.export.at_end=True needs a --workdir that all hosts see; so do checkpoints"
    )
  if jax.process_index() == 0:
    check_output_folder(workdir / "export")
    check_copied_files(model)


def export_at_end(
  config: Settings, run: ResolvedRun, workdir: pathlib.Path, checkpoint: str
) -> str:
  """Writes WORKDIR/export, and returns a summary for the user; all processes must call this.

  Args:
    checkpoint: name of the last step's checkpoint.
  """
  export = Export(
    checkpoint=workdir / checkpoints_folder(workdir).name / checkpoint,
    workdir=workdir,
    out=workdir / "export",
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
  return _summary(export, written)


def _summary(export: Export, written: Written) -> str:
  """Formats "exported step 7: 134.5M bfloat16 weights, 256.6 MiB in 1 file, to runs/x/export"."""
  files = "1 file" if written.files == 1 else f"{written.files} files"
  return (
    f"exported step {export.step}: {written.parameters / 1e6:,.1f}M {written.dtype} weights, "
    f"{human_bytes(written.bytes)} in {files}, to {brief(export.out)}"
  )
