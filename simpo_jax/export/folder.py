"""Writes the exported folder: weights, configs, tokenizer and model card, then one rename.

The files of weights are divided among the processes. Each reads the tensors of one file at a
time from the checkpoint, so memory is bounded by the size of a file.
"""

import contextlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import save_file

from simpo_jax.errors import UserError, one_line
from simpo_jax.export.card import model_card
from simpo_jax.export.hf_configs import (
  check_copied_files,
  generation_config,
  hf_config,
  write_tokenizer,
)
from simpo_jax.models.hf_weights import CheckpointWeights, open_checkpoint
from simpo_jax.models.lora import make_lora
from simpo_jax.models.weights import OpenModel
from simpo_jax.settings import Settings
from simpo_jax.storage import temporary
from simpo_jax.tokenizer.tokenizer import Tokenizer

MANIFEST = "simpo_jax_export.json"  # lists the files of an export, which may be replaced
_GB = 10**9


class Export(NamedTuple):
  """What to export, and where to.

  Attributes:
    checkpoint: the checkpoint's folder.
    workdir: of the run.
    out: the folder to write.
    step: training step of the checkpoint.
    config: of the run; `config.export` has the options.
    model: the base model.
    tokenizer: the run's: of the base model or its adapter, with the run's chat template.
  """

  checkpoint: pathlib.Path
  workdir: pathlib.Path
  out: pathlib.Path
  step: int
  config: Settings
  model: OpenModel
  tokenizer: Tokenizer


class Written(NamedTuple):
  """Counts of what was written."""

  files: int  # with weights
  parameters: int
  bytes: int  # of the parameters
  dtype: str


def write_folder(
  export: Export,
  share: int = 0,
  shares: int = 1,
  barrier: Callable[[str, str], list[str]] = lambda name, text: [text],
) -> Written:
  """Writes the folder atomically. All processes must call this, with the same `export`.

  Args:
    share: index of this process.
    shares: number of processes.
    barrier: such as `distributed.gather`: takes a name and a text, and returns the texts of all
      processes once all have called it.

  Raises:
    UserError: the checkpoint is not of this model, a weight is out of the dtype's range, or the
      folder cannot be written or has other files.
  """
  options = export.config.export
  lora = make_lora(export.config.train)
  weights = open_checkpoint(export.checkpoint, export.model.config, lora, options.average)
  dtype = np.dtype(jnp.dtype(weights.dtype if options.dtype == "auto" else options.dtype))
  files = plan_files(weights.shapes, dtype.itemsize, int(options.shard_gb * _GB))
  sizes = {name: int(np.prod(shape)) for name, shape in weights.shapes.items()}
  written = Written(
    len(files), sum(sizes.values()), sum(sizes.values()) * dtype.itemsize, dtype.name
  )
  check_copied_files(export.model)
  with _write_errors_as_user_errors(export.out), contextlib.ExitStack() as stack:
    temporary_name = ""
    if share == 0:
      check_output_folder(export.out)
      export.out.parent.mkdir(parents=True, exist_ok=True)
      temporary_name = stack.enter_context(temporary.folder_for(export.out)).name
    partial = export.out.with_name(barrier("export's folder", temporary_name)[0])
    for name, tensors in list(files.items())[share::shares]:
      _write_tensors(partial / name, tensors, weights, dtype)
    barrier("export's weights", "")
    if share == 0:
      _write_rest(partial, export, weights, files, written)
      _move_into_place(partial, export.out)
  return written


def plan_files(
  shapes: dict[str, tuple[int, ...]], itemsize: int, max_bytes: int
) -> dict[str, list[str]]:
  """Assigns tensors to files, in order: as many to each as fit into `max_bytes`."""
  files, size = [[]], 0
  for name, shape in shapes.items():
    tensor_bytes = int(np.prod(shape)) * itemsize
    if files[-1] and size + tensor_bytes > max_bytes:
      files.append([])
      size = 0
    files[-1].append(name)
    size += tensor_bytes
  if len(files) == 1:
    return {"model.safetensors": files[0]}
  return {
    f"model-{number:05d}-of-{len(files):05d}.safetensors": names
    for number, names in enumerate(files, start=1)
  }


def check_output_folder(out: pathlib.Path) -> None:
  """Raises a UserError unless the folder is absent, empty, or has the files of an export only."""
  if out.is_symlink():
    raise UserError(f"{out} is a link; name the folder that it leads to, or another")
  if not out.exists():
    return
  if not out.is_dir():
    raise UserError(f"{out} is a file; choose another folder")
  names = sorted(path.name for path in out.iterdir())
  try:
    exported = [MANIFEST, *json.loads((out / MANIFEST).read_text())["files"]] if names else []
  except (OSError, ValueError, KeyError, TypeError):
    exported = []
  if foreign := [name for name in names if name not in exported]:
    raise UserError(
      f"{out} holds {foreign[0]}, which no export has written; choose another folder, or move it "
      "out of the way"
    )


def _write_tensors(
  path: pathlib.Path, names: list[str], weights: CheckpointWeights, dtype: np.dtype
) -> None:
  tensors = {}
  for name in names:
    value = weights.read(name, tuple(slice(0, n) for n in weights.shapes[name]))
    with np.errstate(over="ignore"):  # checked below
      tensors[name] = np.asarray(value, dtype, order="C")
    if not np.isfinite(tensors[name]).all():
      overflows = np.isfinite(value).all()
      raise UserError(
        f"{name} has values beyond {dtype.name}; export in bfloat16 or float32"
        if overflows
        else f"{name} is not finite in this checkpoint; export an earlier one with --step"
      )
  path.touch()
  mode = path.stat().st_mode  # by the umask
  save_file(tensors, path, metadata={"format": "pt"})
  path.chmod(mode)  # safetensors makes files private to their owner


def _write_rest(
  folder: pathlib.Path,
  export: Export,
  weights: CheckpointWeights,
  files: dict[str, list[str]],
  written: Written,
) -> None:
  if len(files) > 1:
    weight_map = {name: file for file, names in files.items() for name in names}
    index = {
      "metadata": {"total_size": written.bytes, "total_parameters": written.parameters},
      "weight_map": dict(sorted(weight_map.items())),
    }
    _write_json(folder / "model.safetensors.index.json", index)
  model, tokenizer = export.model, export.tokenizer
  _write_json(folder / "config.json", hf_config(model, tokenizer, written.dtype))
  _write_json(folder / "generation_config.json", generation_config(model, tokenizer))
  write_tokenizer(folder, model)
  card = model_card(
    export.workdir,
    export.config,
    model,
    chats=tokenizer.chat_template is not None,
    step=export.step,
    averaged=weights.averaged,
    dtype=written.dtype,
  )
  (folder / "README.md").write_text(card)
  manifest = {
    "step": export.step,
    "dtype": written.dtype,
    "averaged": weights.averaged,
    "files": sorted(path.name for path in folder.iterdir()),
  }
  _write_json(folder / MANIFEST, manifest)


def _move_into_place(partial: pathlib.Path, out: pathlib.Path) -> None:
  if out.exists():  # an earlier export, as `check_output_folder` ensures
    with temporary.folder_for(out) as aside:
      out.rename(aside / out.name)
      try:
        partial.rename(out)
      except OSError:
        (aside / out.name).rename(out)
        raise
  else:
    partial.rename(out)


@contextlib.contextmanager
def _write_errors_as_user_errors(out: pathlib.Path):
  """Turns failures of the storage, such as a full disk, into UserErrors."""
  try:
    yield
  except (OSError, SafetensorError) as e:
    raise UserError(
      f"{out} cannot be written ({one_line(e)}); free space, or choose another folder"
    ) from e


def _write_json(path: pathlib.Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
