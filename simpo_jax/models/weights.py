"""Weights in: a model's source to sharded device arrays, without a device program.

A source is opened (its config read, its tensors checked against the declaration
in `llama.tensors`) before anything is placed. Then every shard is filled straight
from the lazily read file, so the host never holds a second copy of the model.
"""

import json
import pathlib
import zlib
from collections.abc import Callable
from typing import NamedTuple

import huggingface_hub
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jax.typing import DTypeLike

from simpo_jax.errors import UserError
from simpo_jax.models import gguf, safetensors
from simpo_jax.models.config import EMBEDDED, ModelConfig
from simpo_jax.models.hf_config import from_hf
from simpo_jax.models.llama import Params, Tensor, tensors
from simpo_jax.models.lora import Lora, all_tensors
from simpo_jax.models.safetensors import Index, Read
from simpo_jax.models.source import Kind, parse_source

INIT_STD = 0.02
# Weights of other formats and of other frameworks in the same repository stay there.
_HUB_FILES = ("*.json", "model*.safetensors", "*.jinja", "*.txt", "tokenizer.model")
_SHOWN = 3  # names listed in one message
Bounds = tuple[tuple[int, int], ...]  # of a shard: (start, stop) along every axis


class OpenModel(NamedTuple):
  """A source that was opened and checked; holds no weights.

  Attributes:
    name: the source as the user wrote it.
    config: the architecture.
    path: the local folder or .gguf file (where the tokenizer is, too), or None if embedded.
    read: `read(hf_name, index)`, the slice `index` of the tensor that Hugging Face calls
      `hf_name`, in its layout and any float dtype; None: random weights.
  """

  name: str
  config: ModelConfig
  path: pathlib.Path | None
  read: Read | None


def open_model(source: str) -> OpenModel:
  """Opens a model source; see `source.Kind`.

  Raises:
    UserError: the source cannot be found or read, its architecture is not supported,
      or its tensors are not exactly those that its config asks for.
  """
  kind, path = parse_source(source)
  if kind is Kind.EMBEDDED:
    return OpenModel(source, EMBEDDED, None, None)
  path = path or _fetched(source)
  if kind is Kind.RANDOM:
    return OpenModel(source, read_config(path), path, None)
  if kind is Kind.GGUF:
    config, weights = gguf.open_gguf(path)
  else:
    if not (path / "config.json").is_file() and (ggufs := sorted(path.glob("*.gguf"))):
      raise UserError(f"{path} holds GGUF files: name one, such as {ggufs[0]}")
    config = read_config(path)
    weights = safetensors.open_folder(path)
  _check(config, weights.shapes, path)
  return OpenModel(source, config, path, weights.read)


def load_params(
  model: OpenModel, shardings: Params, dtype: DTypeLike, seed: int = 0, lora: Lora | None = None
) -> Params:
  """Places every weight, each process its own shards; nothing compiles or runs.

  Args:
    model: from `open_model`.
    shardings: a Sharding for every weight, in the tree of `lora.all_tensors`.
    dtype: of the placed weights, such as "float32"; adapters are float32.
    seed: of random weights, which depend on it and on nothing else: not on shardings.
    lora: the adapters to make beside the weights.

  Returns:
    The weights as global arrays, in the tree of `lora.all_tensors`.
  """
  weight_dtype = jnp.dtype(dtype)
  if seed < 0:
    raise UserError(f"--config.seed={seed} cannot be negative")

  def place(tensor: Tensor, sharding: Sharding) -> jax.Array:
    kept = np.dtype(np.float32) if tensor.adapter else weight_dtype
    return _place(tensor.shape, sharding, lambda b: _read_shard(model, tensor, b, kept, seed))

  return jax.tree.map(place, all_tensors(model.config, lora), shardings)


def load_decode_params(
  model: OpenModel, shardings: Params, dtype: DTypeLike, seed: int = 0
) -> Params:
  """Places the weights as decoding has them (`llama.unstack`): each layer by itself.

  Args:
    shardings: in that form.
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
  """An array of shards, each read once."""
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
  # Transfers are asynchronous: waiting frees this tensor's buffers before the next.
  return array.block_until_ready()


def _read_shard(
  model: OpenModel, tensor: Tensor, bounds: Bounds, dtype: np.dtype, seed: int
) -> np.ndarray:
  """One shard, layer by layer."""
  index = tuple(slice(*b) for b in bounds)
  if not tensor.stacked:  # the embeddings are the largest tensors: no copy if the dtype is right
    return np.asarray(_read_layer(model, tensor, 0, index, seed), dtype, order="C")
  out = np.empty([stop - start for start, stop in bounds], dtype)
  for i, layer in enumerate(range(*bounds[0])):
    out[i] = _read_layer(model, tensor, layer, index[1:], seed)
  return out


def _read_layer(
  model: OpenModel, tensor: Tensor, layer: int, index: Index, seed: int
) -> np.ndarray:
  if model.read is None or tensor.adapter:
    return _random_layer(tensor, layer, seed)[index]
  name = tensor.hf_name.format(layer)
  return model.read(name, index[::-1]).T if tensor.transposed else model.read(name, index)


def _random_layer(tensor: Tensor, layer: int, seed: int) -> np.ndarray:
  """A layer's whole initial value: slicing it gives the same weights in any sharding."""
  shape = tensor.shape[1:] if tensor.stacked else tensor.shape
  if tensor.init in ("ones", "zeros"):
    return np.broadcast_to(np.float32(tensor.init == "ones"), shape)
  rng = np.random.default_rng((seed, zlib.crc32(tensor.hf_name.encode()), layer))
  if tensor.init == "uniform":  # over +-1/sqrt(inputs): PEFT's kaiming_uniform_(a=sqrt(5))
    return (2 * rng.random(shape, np.float32) - 1) / np.sqrt(np.float32(shape[0]))
  return rng.standard_normal(shape, np.float32) * np.float32(INIT_STD)


def _check(config: ModelConfig, found: dict[str, tuple[int, ...]], path: pathlib.Path) -> None:
  """The tensors of a file must be those of its config, shapes included."""
  expected: dict[str, tuple[int, ...]] = {}
  declared: list[Tensor] = jax.tree.leaves(tensors(config))
  for tensor in declared:
    shape = tensor.shape[1:] if tensor.stacked else tensor.shape
    shape = shape[::-1] if tensor.transposed else shape
    for layer in range(config.num_hidden_layers if tensor.stacked else 1):
      expected[tensor.hf_name.format(layer)] = shape
  if missing := [name for name in expected if name not in found]:
    raise UserError(f"{path} lacks {_listed(missing)}; get the whole checkpoint, or fix its config")
  for name, shape in expected.items():
    if found[name] != shape:
      raise UserError(
        f"{path}: {name} has shape {found[name]}, but its config asks for {shape}; "
        "use the config that belongs to these weights"
      )

  def harmless(name: str) -> bool:  # a buffer of old checkpoints; a copy of the tied embedding
    return name.endswith("rotary_emb.inv_freq") or (
      name == "lm_head.weight" and config.tie_word_embeddings
    )

  if extra := [name for name in found if name not in expected and not harmless(name)]:
    raise UserError(
      f"{path} holds {_listed(extra)}, which a {config.model_type} model does not have; "
      "use a plain checkpoint (adapters merged, nothing quantized)"
    )


def _listed(names: list[str]) -> str:
  rest = f" and {len(names) - _SHOWN} more tensors" if len(names) > _SHOWN else ""
  return ", ".join(names[:_SHOWN]) + rest


def read_config(folder: pathlib.Path) -> ModelConfig:
  """The architecture that a folder's config.json describes; raises UserError."""
  path = folder / "config.json"
  if not path.is_file():  # reading a pipe would wait for ever
    raise UserError(f"{folder} holds no config.json; name a Hugging Face model's folder")
  try:
    return from_hf(json.loads(path.read_text()), str(path))
  except (ValueError, TypeError, AttributeError, RecursionError, OSError) as e:
    raise UserError(f"{path} is not a model's config ({e}); get it again") from e


def _fetched(source: str) -> pathlib.Path:
  """The folder of a hub id: downloaded, or in the hub's local cache."""
  try:
    return pathlib.Path(huggingface_hub.snapshot_download(source, allow_patterns=list(_HUB_FILES)))
  except Exception as e:  # offline, no such name, no permission: many types, one remedy
    raise UserError(
      f"--config.model.source: there is no folder {source}, and the hub did not give it "
      f"({type(e).__name__}): check the name, or run `hf download {source}` first"
    ) from e
