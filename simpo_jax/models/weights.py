"""Loads a model source into sharded device arrays, without compiling anything.

First the source is opened: its config is read and its tensors are checked against the
declaration in `llama.tensors`. Then every shard is filled directly from the lazily read
file, so that the host never holds a second copy of the model.
"""

import json
import pathlib
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike

from simpo_jax.errors import UserError
from simpo_jax.models import gguf, safetensors
from simpo_jax.models.adapter_files import CONFIG as ADAPTER_CONFIG
from simpo_jax.models.adapter_files import WEIGHTS as ADAPTER_WEIGHTS
from simpo_jax.models.adapter_files import Adapter, base_of, is_adapter, open_adapter
from simpo_jax.models.config import EMBEDDED, ModelConfig
from simpo_jax.models.hf_config import config_notes, from_hf, quantization_of
from simpo_jax.models.llama import Params, Tensor, tensors
from simpo_jax.models.lora import Lora, all_tensors
from simpo_jax.models.safetensors import Index, Read, Weights
from simpo_jax.models.source import Kind, parse_source
from simpo_jax.models.tensor_names import check_declared, plain_names
from simpo_jax.models.tying import UNTIED, untied_if_different
from simpo_jax.storage.paths import check_path

INIT_STD = 0.02
# Weights in other formats in the same repository are not downloaded.
_HUB_FILES = (
  "*.json", "model*.safetensors", ADAPTER_WEIGHTS, "*.jinja", "*.txt", "tokenizer.model",
)  # fmt: skip
Bounds = tuple[tuple[int, int], ...]  # (start, stop) of a shard along every axis


class OpenModel(NamedTuple):
  """A model source that was opened and checked; holds no weights.

  Attributes:
    name: the source as the user wrote it.
    config: the architecture.
    path: the local folder or .gguf file; None if embedded. The tokenizer may be elsewhere, see
      `tokenizer.of_model`.
    read: `read(hf_name, index)` reads a slice of a tensor by its Hugging Face name, in
      Hugging Face's layout and any float dtype; None: random weights.
    notes: what is read otherwise than its files say, for the user.
    adapter: if the source is an adapter; `config` and `path` are its base model's, and `read`
      merges it into the weights.
  """

  name: str
  config: ModelConfig
  path: pathlib.Path | None
  read: Read | None
  notes: tuple[str, ...] = ()
  adapter: Adapter | None = None


def open_model(source: str) -> OpenModel:
  """Opens a model source; see `source.Kind`.

  Raises:
    UserError: the source cannot be found or read, its architecture is not supported,
      or its tensors do not match its config.
  """
  kind, path = parse_source(source)
  if kind is Kind.EMBEDDED:
    return OpenModel(source, EMBEDDED, None, None)
  path = path or _fetched(source)
  if kind is not Kind.RANDOM and is_adapter(path):
    return _open_adapter(source, path)
  return _open_whole(source, kind, path)


def _open_adapter(source: str, folder: pathlib.Path) -> OpenModel:
  """Opens adapters and their base model, whose tensors are read with the adapters in them."""
  name = base_of(folder)
  try:
    check_path("base_model_name_or_path", name)
    kind, path = parse_source(name)
    if kind in (Kind.EMBEDDED, Kind.RANDOM):
      raise UserError(f"{name} has random weights")
    path = path or _fetched(name)
    if is_adapter(path):
      raise UserError(f"{name} is an adapter itself; merge it first")
    base = _open_whole(name, kind, path)
    assert base.read is not None, "neither embedded nor random"
  except UserError as e:
    raise UserError(
      f"{folder} is an adapter, whose base model cannot be opened ({e}); write where that is into "
      f"base_model_name_or_path of its {ADAPTER_CONFIG}"
    ) from e
  adapter = open_adapter(folder, base.config, base.read)
  notes = (adapter.note, *base.notes)
  return base._replace(name=source, read=adapter.merged, notes=notes, adapter=adapter)


def _open_whole(source: str, kind: Kind, path: pathlib.Path) -> OpenModel:
  if kind is Kind.RANDOM:
    config, hf = read_config(path)
    return OpenModel(source, config, path, None, tuple(config_notes(hf)))
  config, weights = gguf.open_gguf(path) if kind is Kind.GGUF else _open_folder(path)
  check_declared(config, weights.shapes, path)
  return OpenModel(source, config, path, weights.read, weights.notes)


def _open_folder(path: pathlib.Path) -> tuple[ModelConfig, Weights]:
  """Opens a Hugging Face folder: its config, as its weights ask for it, and the weights."""
  if not (path / "config.json").is_file() and (ggufs := sorted(path.glob("*.gguf"))):
    raise UserError(f"{path} holds GGUF files: name one, such as {ggufs[0]}")
  declared, hf = read_config(path)
  quantization = quantization_of(hf)
  weights = plain_names(safetensors.open_folder(path, quantization), str(path))
  config = untied_if_different(declared, weights)
  notes = [*weights.notes, *config_notes(hf)]
  if config.tie_word_embeddings != declared.tie_word_embeddings:
    notes.append(UNTIED)
  if quantization:
    notes.append(f"its weights are not quantized; its quantization ({quantization}) is ignored")
  return config, weights._replace(notes=tuple(notes))


def load_params(
  model: OpenModel, shardings: Params, dtype: DTypeLike, seed: int = 0, lora: Lora | None = None
) -> Params:
  """Loads every weight onto the devices, without compiling anything.

  Each process reads only the shards of its local devices.

  Args:
    model: from `open_model`.
    shardings: a Sharding for every weight, in the tree of `lora.all_tensors`.
    dtype: of the loaded weights, such as "float32"; adapters are always float32.
    seed: for random weights, which do not depend on the shardings.
    lora: adapters in addition to the weights: those of the model, if it has some, else new ones.

  Returns:
    The weights as global arrays, in the tree of `lora.all_tensors`.
  """
  weight_dtype = jnp.dtype(dtype)
  if seed < 0:
    raise UserError(f"--config.seed={seed} cannot be negative")

  if lora and model.adapter:
    model = model._replace(read=model.adapter.apart)

  def place(tensor: Tensor, sharding: Sharding) -> jax.Array:
    kept = np.dtype(np.float32) if tensor.adapter else weight_dtype
    return _place(tensor.shape, sharding, lambda b: _read_shard(model, tensor, b, kept, seed))

  return jax.tree.map(place, all_tensors(model.config, lora), shardings)


def load_decode_params(
  model: OpenModel, shardings: Params, dtype: DTypeLike, seed: int = 0
) -> Params:
  """Loads the weights for decoding, with the layers as a list (see `llama.unstack`).

  Args:
    shardings: a Sharding for every weight, layers as a list.
    dtype, seed: as for `load_params`.
  """
  weight_dtype = jnp.dtype(dtype)

  def place(tensor: Tensor, sharding: Sharding, layer: int = 0) -> jax.Array:
    def read(bounds: Bounds) -> np.ndarray:
      index = tuple(slice(*b) for b in bounds)
      return np.asarray(_read_layer(model, tensor, layer, index, seed), weight_dtype, order="C")

    shape = tensor.shape[1:] if tensor.stacked else tensor.shape
    return _place(shape, sharding, read)

  table = tensors(model.config)
  return {
    name: [
      {key: place(tensor, shards[key], layer) for key, tensor in table["layers"].items()}
      for layer, shards in enumerate(sharding)
    ]
    if name == "layers"
    else place(table[name], sharding)
    for name, sharding in shardings.items()
  }


def _place(
  shape: tuple[int, ...], sharding: Sharding, read: Callable[[Bounds], np.ndarray]
) -> jax.Array:
  """Creates an array, reading each distinct shard once."""
  shards: dict[Bounds, np.ndarray] = {}  # replicas on one host share a buffer

  def shard(index: Index) -> np.ndarray:
    bounds = tuple(s.indices(n)[:2] for s, n in zip(index, shape, strict=True))
    if bounds not in shards:
      shards[bounds] = read(bounds)
    return shards[bounds]

  array = jax.make_array_from_callback(
    shape,
    sharding,
    shard,  # pyright: ignore[reportArgumentType]  # its index is never None
  )
  # Wait for the asynchronous transfers, to free this tensor's buffers before the next one.
  return array.block_until_ready()


def _read_shard(
  model: OpenModel, tensor: Tensor, bounds: Bounds, dtype: np.dtype, seed: int
) -> np.ndarray:
  """Reads one shard, layer by layer."""
  index = tuple(slice(*b) for b in bounds)
  if not tensor.stacked:  # embeddings, the largest tensors: avoid a copy
    return np.asarray(_read_layer(model, tensor, 0, index, seed), dtype, order="C")
  out = np.empty([stop - start for start, stop in bounds], dtype)
  for i, layer in enumerate(range(*bounds[0])):
    out[i] = _read_layer(model, tensor, layer, index[1:], seed)
  return out


def _read_layer(
  model: OpenModel, tensor: Tensor, layer: int, index: Index, seed: int
) -> np.ndarray:
  if model.read is None or (tensor.adapter and model.adapter is None):
    return _random_layer(tensor, layer, seed)[index]
  name = tensor.hf_name.format(layer)
  return model.read(name, index[::-1]).T if tensor.transposed else model.read(name, index)


def _random_layer(tensor: Tensor, layer: int, seed: int) -> np.ndarray:
  """The full initial value of a layer; slices of it are the same for any sharding."""
  shape = tensor.shape[1:] if tensor.stacked else tensor.shape
  if tensor.init in ("ones", "zeros"):
    return np.broadcast_to(np.float32(tensor.init == "ones"), shape)
  rng = np.random.default_rng((seed, zlib.crc32(tensor.hf_name.encode()), layer))
  if tensor.init == "uniform":  # over +-1/sqrt(inputs): PEFT's kaiming_uniform_(a=sqrt(5))
    return (2 * rng.random(shape, np.float32) - 1) / np.sqrt(np.float32(shape[0]))
  return rng.standard_normal(shape, np.float32) * np.float32(INIT_STD)


def read_config(folder: pathlib.Path) -> tuple[ModelConfig, dict[str, Any]]:
  """Reads the architecture from a folder's config.json, and all its fields; raises UserError."""
  path = folder / "config.json"
  if not path.is_file():  # reading a pipe would block forever
    raise UserError(f"{folder} holds no config.json; name a Hugging Face model's folder")
  try:
    fields = json.loads(path.read_text())
    return from_hf(fields, str(path)), fields
  except (ValueError, TypeError, AttributeError, RecursionError, OSError) as e:
    raise UserError(f"{path} is not a model's config ({e}); get it again") from e


def _fetched(source: str) -> pathlib.Path:
  """Returns the local folder of a hub id, downloading the model unless it is cached."""
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(source, allow_patterns=list(_HUB_FILES)))
  except Exception as e:  # offline, unknown name, no permission: many types, the same fix
    raise UserError(
      f"--config.model.source: there is no folder {source}, and the hub did not give it "
      f"({type(e).__name__}): check the name, or run `hf download {source}` first"
    ) from e
