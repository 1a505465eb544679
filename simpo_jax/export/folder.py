"""Writes the folder: weights in shards, then all that belongs to them, then one rename.

Several processes share the work, file by file: each reads the tensors of its own files out of
the checkpoint, one after the other, so that nobody ever holds more than one file's.
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
  check_copied,
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

MARK = "simpo_jax_export.json"  # in a folder of ours, which may be replaced
_GB = 10**9


class Export(NamedTuple):
  """What is written, and where.

  Attributes:
    checkpoint: its folder.
    workdir: of the run that made it.
    out: the folder to be.
    step: of the checkpoint.
    config: of the run; `config.export` says how.
    model, tokenizer: what the run began with.
  """

  checkpoint: pathlib.Path
  workdir: pathlib.Path
  out: pathlib.Path
  step: int
  config: Settings
  model: OpenModel
  tokenizer: Tokenizer


class Written(NamedTuple):
  """What an export has written."""

  files: int  # of weights
  parameters: int
  bytes: int  # of them
  dtype: str


def write_folder(
  export: Export,
  share: int = 0,
  shares: int = 1,
  barrier: Callable[[str, str], list[str]] = lambda what, own: [own],
) -> Written:
  """Writes the folder, or nothing.

  Args:
    share, shares: which of how many processes this is; all must call, with the same `export`.
    barrier: returns when all have called it, with what each has to say.

  Raises:
    UserError: the checkpoint is not this model's, a weight does not fit the dtype, or the
      folder cannot be written or holds something else.
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
  check_copied(export.model)
  with _told(export.out), contextlib.ExitStack() as stack:
    made = ""
    if share == 0:
      check_out(export.out)
      export.out.parent.mkdir(parents=True, exist_ok=True)
      made = stack.enter_context(temporary.folder_for(export.out)).name
    partial = export.out.with_name(barrier("export's folder", made)[0])
    for name, tensors in list(files.items())[share::shares]:
      _write_tensors(partial / name, tensors, weights, dtype)
    barrier("export's weights", "")
    if share == 0:
      _write_rest(partial, export, weights, files, written)
      _into_place(partial, export.out)
  return written


def plan_files(
  shapes: dict[str, tuple[int, ...]], itemsize: int, most: int
) -> dict[str, list[str]]:
  """Which tensors go into which file, in their order: as many as fit into `most` bytes."""
  files, size = [[]], 0
  for name, shape in shapes.items():
    own = int(np.prod(shape)) * itemsize
    if files[-1] and size + own > most:
      files.append([])
      size = 0
    files[-1].append(name)
    size += own
  if len(files) == 1:
    return {"model.safetensors": files[0]}
  return {
    f"model-{number:05d}-of-{len(files):05d}.safetensors": names
    for number, names in enumerate(files, start=1)
  }


def check_out(out: pathlib.Path) -> None:
  """Raises a UserError unless the folder is absent, empty, or an export and nothing else."""
  if out.is_symlink():
    raise UserError(f"{out} is a link; name the folder that it leads to, or another")
  if not out.exists():
    return
  if not out.is_dir():
    raise UserError(f"{out} is a file; choose another folder")
  there = sorted(path.name for path in out.iterdir())
  try:
    ours = [MARK, *json.loads((out / MARK).read_text())["files"]] if there else []
  except (OSError, ValueError, KeyError, TypeError):
    ours = []
  if foreign := [name for name in there if name not in ours]:
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
    with np.errstate(over="ignore"):  # told below
      tensors[name] = np.asarray(value, dtype, order="C")
    if not np.isfinite(tensors[name]).all():
      whole = np.isfinite(value).all()
      raise UserError(
        f"{name} has values beyond {dtype.name}; export in bfloat16 or float32"
        if whole
        else f"{name} is not finite in this checkpoint; export an earlier one with --step"
      )
  path.touch()
  mode = path.stat().st_mode
  save_file(tensors, path, metadata={"format": "pt"})
  path.chmod(mode)  # safetensors writes for its owner alone


def _write_rest(
  folder: pathlib.Path,
  export: Export,
  weights: CheckpointWeights,
  files: dict[str, list[str]],
  written: Written,
) -> None:
  if len(files) > 1:
    places = {name: file for file, names in files.items() for name in names}
    index = {
      "metadata": {"total_size": written.bytes, "total_parameters": written.parameters},
      "weight_map": dict(sorted(places.items())),
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
  mark = {
    "step": export.step,
    "dtype": written.dtype,
    "averaged": weights.averaged,
    "files": sorted(path.name for path in folder.iterdir()),
  }
  _write_json(folder / MARK, mark)


def _into_place(partial: pathlib.Path, out: pathlib.Path) -> None:
  if out.exists():  # `check_out` has seen that it may go
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
def _told(out: pathlib.Path):
  """Storage that fails is told as the user's error."""
  try:
    yield
  except (OSError, SafetensorError) as e:
    raise UserError(
      f"{out} cannot be written ({one_line(e)}); free space, or choose another folder"
    ) from e


def _write_json(path: pathlib.Path, value: Any) -> None:
  path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n")
