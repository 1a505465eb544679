"""Exports of a run: by its workdir on any machine, or by itself at its end."""

import pathlib

import jax

from simpo_jax import distributed, storage
from simpo_jax.checkpoint import damage, positions, read_about
from simpo_jax.config import default_config, flatten
from simpo_jax.config_check import range_problem
from simpo_jax.data.load_tokenizer import run_tokenizer
from simpo_jax.display import human_bytes
from simpo_jax.errors import UserError, one_line
from simpo_jax.export.folder import Export, Written, check_out, write_folder
from simpo_jax.fingerprint import model_fields
from simpo_jax.resolve import Run
from simpo_jax.resume import checkpoints_folder
from simpo_jax.saver import Saver
from simpo_jax.weights import open_model


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
  try:
    config.model.source = source or config.model.source
    model = open_model(config.model.source)
    tokenizer = run_tokenizer(config)
  except UserError as e:
    raise UserError(f"{e}; name the place of the model that the run began with: --source") from e
  identity = about.get("identity", {})
  now = model_fields(model, tokenizer)
  if changed := [name for name in now if identity.get(name, now[name]) != now[name]]:
    if not force:
      raise UserError(
        f"{model.name} is not what {workdir} began with: its {' and '.join(changed)} differ; name "
        "the right one with --source, or say --force"
      )
  export = Export(checkpoint, workdir, out, about["position"]["step"], config, model, tokenizer)
  return _text(export, write_folder(export))


def check_at_end(config, folder: pathlib.Path, shared: bool) -> None:
  """Raises a UserError before anything runs if there could be no export at the end."""
  if not config.export.at_end:
    return
  if storage.is_remote(folder):
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
  return _text(export, written)


def _text(export: Export, written: Written) -> str:
  """ "exported step 7: 134.5M bfloat16 weights, 256.6 MiB in 1 file, to runs/x/export"."""
  files = "1 file" if written.files == 1 else f"{written.files} files"
  return (
    f"exported step {export.step}: {written.parameters / 1e6:,.1f}M {written.dtype} weights, "
    f"{human_bytes(written.bytes)} in {files}, to {export.out}"
  )


def _checkpoint(workdir: pathlib.Path, step: int | None) -> pathlib.Path:
  """The folder of the newest checkpoint, or of the last one after this step."""
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
