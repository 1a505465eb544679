"""Reads a checkpoint's weights, slice by slice, under Hugging Face's names and in its layout.

Neither devices nor the mesh of the run are needed, and only the requested layers are read
(`manager.save_args_by_layer` saves each layer of a stacked matrix as a separate chunk).
"""

import functools
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorstore

from simpo_jax.checkpoint.layout import read_metadata
from simpo_jax.errors import UserError, one_line
from simpo_jax.models.config import ModelConfig
from simpo_jax.models.llama import Tensor, tensors
from simpo_jax.models.lora import Lora, all_tensors, merged_matrix
from simpo_jax.models.safetensors import Index, Read

Keys = tuple[str, ...]  # path of a weight in the tree of `lora.all_tensors`


class CheckpointWeights(NamedTuple):
  """The weights of a checkpoint; `shapes` and `read` are like those of `safetensors.Weights`.

  Attributes:
    shapes: the shape of every tensor by its Hugging Face name, layer by layer.
    read: `read(name, index)` reads one slice of one tensor in its stored dtype, or in
      float32 if an adapter is merged into it.
    dtype: dtype of the stored weights.
    averaged: whether any of them are averages over the training steps.
  """

  shapes: dict[str, tuple[int, ...]]
  read: Read
  dtype: str
  averaged: bool


class _Place(NamedTuple):
  """The location of a Hugging Face tensor in the checkpoint: one layer of one weight."""

  keys: Keys
  tensor: Tensor
  layer: int  # 0 if the weight is not stacked


def open_checkpoint(
  folder: pathlib.Path, cfg: ModelConfig, lora: Lora | None = None, average: bool = True
) -> CheckpointWeights:
  """Opens a complete checkpoint, without reading weights yet.

  Args:
    folder: the checkpoint's folder.
    lora: the adapters in the checkpoint; they are merged into the weights as they are read.
    average: whether to prefer averaged weights (`train.ema_decay`) if there are any.

  Raises:
    UserError: the checkpoint is incomplete, or of another model.
  """
  try:
    arrays = read_metadata(folder)["arrays"]
  except (OSError, ValueError, KeyError) as e:
    raise UserError(f"{folder} is not a complete checkpoint ({one_line(e)})") from e
  places = {keys: _place(keys, arrays, average) for keys, _ in _flat(all_tensors(cfg, lora))}
  for keys, tensor in _flat(all_tensors(cfg, lora)):
    found = arrays.get(_path(places[keys]), ["absent"])[0]
    if found != list(tensor.shape):
      raise UserError(
        f"{folder} is not of this model: {'.'.join(keys)} is {found} there, but the model's "
        f"config asks for {list(tensor.shape)}; use the model source of the run"
      )
  table = dict(_by_layer(cfg))

  @functools.cache
  def stored(*keys: str) -> tensorstore.TensorStore:
    return open_array(folder, places[keys])

  def part(keys: Keys, index: tuple[int | slice, ...]) -> np.ndarray:
    try:
      return stored(*keys)[index].read().result()
    except ValueError as e:  # TensorStore raises nothing else
      raise UserError(f"{folder} cannot be read ({one_line(e)})") from e

  def read(name: str, index: Index) -> np.ndarray:
    keys, tensor, layer = table[name]
    index = index[::-1] if tensor.transposed else index
    value = part(keys, (layer, *index) if tensor.stacked else index)
    if lora and keys[-1] in lora.matrices:
      a = part(("lora", f"{keys[-1]}_lora_a"), (layer, index[0], slice(None)))
      b = part(("lora", f"{keys[-1]}_lora_b"), (layer, slice(None), index[1]))
      value = merged_matrix(value, a, b, lora)
    return value.T if tensor.transposed else value

  shapes: dict[str, tuple[int, ...]] = {}
  for name, (_, tensor, _) in table.items():
    shape = tensor.shape[1:] if tensor.stacked else tensor.shape
    shapes[name] = shape[::-1] if tensor.transposed else shape
  return CheckpointWeights(
    shapes,
    read,
    dtype=arrays[_path(("params", "embed"))][1],
    averaged=any(place[0] == "average" for place in places.values()),
  )


def _flat(tree: dict[str, Any], before: Keys = ()) -> list[tuple[Keys, Tensor]]:
  out: list[tuple[Keys, Tensor]] = []
  for name, part in tree.items():
    keys = (*before, name)
    out += [(keys, part)] if isinstance(part, Tensor) else _flat(part, keys)
  return out


def _by_layer(cfg: ModelConfig) -> Iterator[tuple[str, _Place]]:
  """Yields Hugging Face names and their locations, layer by layer."""
  table = tensors(cfg)
  for name, part in table.items():
    if name != "layers":
      yield part.hf_name, _Place((name,), part, 0)
      continue
    for layer in range(cfg.num_hidden_layers):
      for key, tensor in part.items():
        yield tensor.hf_name.format(layer), _Place((name, key), tensor, layer)


def _place(keys: Keys, arrays: Mapping[str, Any], average: bool) -> Keys:
  """Path of a weight in the train state: the average if wanted and present, else the weight."""
  averaged = ("average", *keys)
  return averaged if average and _path(averaged) in arrays else ("params", *keys)


def _path(keys: Keys) -> str:
  """A path in the notation of `manager.array_specs`."""
  return "".join(f"[{key!r}]" for key in keys)


def open_array(folder: pathlib.Path, place: Keys) -> tensorstore.TensorStore:
  """Opens an array saved by Orbax: zarr, named by its dotted path.

  A checkpoint that was written to a cloud bucket keeps its arrays in an OCDBT store."""
  kvstore: dict[str, Any] = {"driver": "file", "path": f"{folder}/"}
  if (folder / "manifest.ocdbt").exists():
    kvstore = {"driver": "ocdbt", "base": kvstore}
  return tensorstore.open(
    {
      "driver": "zarr",
      "kvstore": kvstore,
      "path": f"{'.'.join(place)}/",
      "fill_missing_data_reads": False,
    },
    open=True,
    read=True,
  ).result()
