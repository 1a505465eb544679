"""The export that a run makes of its own last checkpoint: host code, shared by its processes."""

import pathlib

import jax

from simpo_jax import distributed
from simpo_jax.display import human_bytes
from simpo_jax.errors import UserError
from simpo_jax.export.folder import Export, Written, check_out, write_folder
from simpo_jax.resolve import Run
from simpo_jax.resume import checkpoints_folder
from simpo_jax.saver import Saver


def check_at_end(config, folder: pathlib.Path, shared: bool) -> None:
  """Raises a UserError before anything runs if there could be no export at the end."""
  if not config.export.at_end:
    return
  if not shared:
    raise UserError(
      "--config.export.at_end=True needs a --workdir that all hosts see, as checkpoints do"
    )
  if jax.process_index() == 0:
    check_out(folder / "export")


def export_at_end(config, run: Run, folder: pathlib.Path, saver: Saver) -> str:
  """Writes WORKDIR/export; all processes must call. Returns what to tell the user."""
  export = Export(
    checkpoint=checkpoints_folder(folder) / saver.last,
    workdir=folder,
    out=folder / "export",
    step=saver.position.step,
    config=config,
    model=run.model,
    tokenizer=run.tokenizer,
  )
  written = write_folder(
    export,
    jax.process_index(),
    jax.process_count(),
    lambda what: distributed.gather(what, ""),
  )
  return written_text(export, written)


def written_text(export: Export, written: Written) -> str:
  """ "exported step 7: 134.5M bfloat16 weights, 256.6 MiB in 1 file, to runs/x/export"."""
  files = "1 file" if written.files == 1 else f"{written.files} files"
  return (
    f"exported step {export.step}: {written.parameters / 1e6:,.1f}M {written.dtype} weights, "
    f"{human_bytes(written.bytes)} in {files}, to {export.out}"
  )
