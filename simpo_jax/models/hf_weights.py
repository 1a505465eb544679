"""A checkpoint's weights in Hugging Face's names and layout, read piece by piece.

Any machine can do so: neither devices nor the mesh that wrote them are needed, and no more is
read than is asked for (`manager.by_layer` has saved every layer's matrix by itself).
"""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import tensorstore

from simpo_jax.checkpoint.layout import read_metadata
from simpo_jax.errors import UserError, one_line
from simpo_jax.models.config import ModelConfig
from simpo_jax.models.llama import Tensor, tensors
from simpo_jax.models.lora import Lora, all_tensors, merged_matrix

Keys = tuple[str, ...]  # of a weight in the tree of `lora.all_tensors`


class CheckpointWeights(NamedTuple):
  """The weights of a checkpoint; `shapes` and `read` are those of `safetensors.Weights`.

  Attributes:
    shapes: of every tensor by its Hugging Face name, in the order of the layers.
    read: `read(name, index)` reads one slice of one tensor in its stored dtype, or in
      float32 where an adapter is merged into it.
    dtype: of the stored weights.
    averaged: whether some of them are averages over the training steps.
  """

  shapes: dict[str, tuple[int, ...]]
  read: Callable[[str, tuple[slice, ...]], np.ndarray]
  dtype: str
  averaged: bool


def open_checkpoint(
  folder: pathlib.Path, cfg: ModelConfig, lora: Lora | None = None, average: bool = True
) -> CheckpointWeights:
  """Opens a checkpoint that is whole; reads no weight yet.

  Args:
    folder: of the checkpoint.
    lora: the adapters that are in it; they are merged into what is read.
    average: take averaged weights where it has them (`train.ema_decay`).

  Raises:
    UserError: it is not of this model.
  """
  try:
    arrays = read_metadata(folder)["arrays"]
  except (OSError, ValueError, KeyError) as e:
    raise UserError(f"{folder} is no checkpoint that is whole ({one_line(e)})") from e
  places = {keys: _place(keys, arrays, average) for keys, _ in _flat(all_tensors(cfg, lora))}
  for keys, tensor in _flat(all_tensors(cfg, lora)):
    found = arrays.get(_path(places[keys]), ["absent"])[0]
    if found != list(tensor.shape):
      raise UserError(
        f"{folder} is not of this model: {'.'.join(keys)} is {found} there, and the model's "
        f"config asks for {list(tensor.shape)}; name the source that the run had"
      )
  table = {name: entry for name, *entry in _by_layer(cfg)}

  @functools.cache
  def stored(*keys):
    return open_array(folder, places[keys])

  def part(keys, index):
    try:
      return stored(*keys)[index].read().result()
    except ValueError as e:  # TensorStore has no other kind
      raise UserError(f"{folder} cannot be read ({one_line(e)})") from e

  def read(name, index):
    keys, tensor, layer = table[name]
    index = index[::-1] if tensor.transposed else index
    value = part(keys, (layer, *index) if tensor.stacked else index)
    if lora and keys[-1] in lora.matrices:
      a = part(("lora", f"{keys[-1]}_lora_a"), (layer, index[0], slice(None)))
      b = part(("lora", f"{keys[-1]}_lora_b"), (layer, slice(None), index[1]))
      value = merged_matrix(value, a, b, lora)
    return value.T if tensor.transposed else value

  shapes = {}
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
  out = []
  for name, part in tree.items():
    out += _flat(part, (*before, name)) if isinstance(part, dict) else [((*before, name), part)]
  return out


def _by_layer(cfg: ModelConfig):
  """Yields (Hugging Face name, keys, tensor, layer): the whole first layer before the second."""
  table = tensors(cfg)
  for name, part in table.items():
    if name != "layers":
      yield part.hf_name, (name,), part, 0
      continue
    for layer in range(cfg.num_hidden_layers):
      for key, tensor in part.items():
        yield tensor.hf_name.format(layer), (name, key), tensor, layer


def _place(keys: Keys, arrays: dict[str, list], average: bool) -> Keys:
  """Where in the train state a weight is taken from."""
  averaged = ("average", *keys)
  return averaged if average and _path(averaged) in arrays else ("params", *keys)


def _path(keys: Keys) -> str:
  """As `manager.arrays_of` writes it."""
  return "".join(f"[{key!r}]" for key in keys)


def open_array(folder: pathlib.Path, place: Keys):
  """An array as Orbax stores it: zarr under its dotted path, from a bucket within OCDBT."""
  kvstore = {"driver": "file", "path": f"{folder}/"}
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
