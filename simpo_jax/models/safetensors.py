"""Reads the safetensors files of a Hugging Face folder, slice by slice."""

import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from safetensors import SafetensorError, safe_open

from simpo_jax.errors import UserError, one_line
from simpo_jax.storage.paths import escapes_folder

_DTYPES = ("F64", "F32", "F16", "BF16")
_MAX_HEADER = 2**25  # bytes; the header of 100,000 tensors has a third of that
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
Index = tuple[slice, ...]
Read = Callable[[str, Index], np.ndarray]  # reads a slice of the named tensor


class Weights(NamedTuple):
  """The tensors of a checkpoint by their Hugging Face names.

  Attributes:
    shapes: the shape of every tensor.
    read: `read(name, index)` reads one slice of one tensor, in its stored dtype or float32.
    notes: messages for the user.
  """

  shapes: dict[str, tuple[int, ...]]
  read: Read
  notes: tuple[str, ...] = ()


@runtime_checkable
class _Slice(Protocol):
  """A tensor that is read lazily, by indexing."""

  def get_dtype(self) -> str: ...
  def get_shape(self) -> list[int]: ...
  def __getitem__(self, index: Index) -> np.ndarray: ...


@runtime_checkable
class _File(Protocol):
  """The result of `safe_open`; the library has no type annotations for it."""

  def keys(self) -> list[str]: ...
  def get_slice(self, name: str) -> _Slice: ...


def open_folder(folder: pathlib.Path, quantization: str | None = None) -> Weights:
  """Opens `model.safetensors`, else the shards that `model.safetensors.index.json` lists.

  Args:
    quantization: the method that the config names, for the message about quantized tensors.

  Raises:
    UserError: there is no such file, a shard is missing or damaged, or tensors are quantized.
  """
  paths, notes = _paths(folder)
  weights = open_files(folder, paths, quantization)
  return weights._replace(notes=tuple(notes))


def open_files(
  folder: pathlib.Path, paths: list[pathlib.Path], quantization: str | None = None
) -> Weights:
  """Opens safetensors files of a folder; see `open_folder`."""
  files: dict[str, _File] = {}
  for path in paths:
    try:
      handle = _open(path)
    except (SafetensorError, ValueError, OSError) as e:
      raise UserError(f"{path} is damaged or cut short ({one_line(e)}); get it again") from e
    files |= dict.fromkeys(handle.keys(), handle)
  shapes: dict[str, tuple[int, ...]] = {}
  for name, handle in files.items():
    view = handle.get_slice(name)
    if view.get_dtype() not in _DTYPES:
      by = f" (its config names the quantization {quantization})" if quantization else ""
      raise UserError(
        f"{folder}: {name} is stored as {view.get_dtype()}{by}; only unquantized checkpoints "
        f"({', '.join(_DTYPES)}) are read"
      )
    shapes[name] = tuple(view.get_shape())

  def read(name: str, index: Index) -> np.ndarray:
    return files[name].get_slice(name)[index]

  return Weights(shapes, read)


def _open(path: pathlib.Path) -> _File:
  """Opens a file after checking its header's size, which the library does not limit."""
  with path.open("rb") as file:
    size = int.from_bytes(file.read(8), "little")
  if size > _MAX_HEADER:
    raise ValueError(f"it claims a header of {size} bytes")
  return safe_open(path, framework="numpy")


def _paths(folder: pathlib.Path) -> tuple[list[pathlib.Path], list[str]]:
  """The files of the weights, and notes. As in transformers, a single file precedes an index."""
  index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
  if single.is_file():
    notes = [f"{single.name} is read, {index.name} beside it is not"] if index.is_file() else []
    return [single], notes
  if index.is_file():
    return [folder / name for name in _listed_in(folder, index)], []
  if any(list(folder.glob(kind)) for kind in _PICKLES):
    raise UserError(
      f"{folder} holds only pickle files, which are not read, since they can run code; convert "
      "them to safetensors, if you trust them, with transformers: AutoModelForCausalLM"
      f".from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})"
    )
  raise UserError(f"{folder} holds neither {single.name} nor {index.name}; download the weights")


def _listed_in(folder: pathlib.Path, index: pathlib.Path) -> list[str]:
  """The files that an index lists, all of them in its folder; raises UserError."""
  try:
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    outside = [n for n in names if pathlib.PurePath(n).name != n or escapes_folder(folder, n)]
    missing = [] if outside else [n for n in names if not (folder / n).is_file()]
  except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as e:
    raise UserError(f"{index} is not a safetensors index; get it again") from e
  if outside:
    raise UserError(
      f"{index} lists {outside[0]!r}, which is not a file in its folder, or a link out of it; "
      "get the model from somebody you trust, or put that file into the folder"
    )
  if missing:
    raise UserError(
      f"{folder} lacks {missing[0]}, one of the {len(names)} files that {index.name} lists; "
      "download it too"
    )
  return names
