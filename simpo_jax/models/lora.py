"""Low-rank adapters (LoRA, arXiv:2106.09685): W + (alpha / rank) A B, with W frozen.

Adapters are declared like the weights and stored next to them under the key "lora", stacked by
layer: `q_lora_a [L, D, rank]` and `q_lora_b [L, rank, H*h]` for the matrix `q [L, D, H*h]`. A
factor is sharded by tensor parallelism like that side of its matrix, and replicated over all
other mesh axes: it is so small that a gather per layer would cost more time than it saves memory.

Training and evaluation add (x A) B to x W. Generation merges the adapters once, when it
reshards the weights for decoding. Names and files are those of the `peft` package.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32

from simpo_jax.models.config import ModelConfig
from simpo_jax.models.llama import Params, Tensor, tensors
from simpo_jax.settings import TrainSettings
from simpo_jax.settings.train import LORA_TARGETS


class Lora(NamedTuple):
  """The configuration of LoRA adapters."""

  rank: int
  alpha: float
  targets: tuple[str, ...]  # a subset of `LORA_TARGETS`

  @property
  def scale(self) -> float:
    return self.alpha / self.rank

  @property
  def matrices(self) -> tuple[str, ...]:
    """The names of the target matrices in `llama.tensors`."""
    return tuple(target.removesuffix("_proj") for target in self.targets)


def make_lora(train: TrainSettings) -> Lora | None:
  """Returns the adapters that the settings request; None without LoRA."""
  if not train.lora_rank:
    return None
  targets = tuple(target for target in LORA_TARGETS if target in train.lora_targets)
  return Lora(train.lora_rank, train.lora_alpha, targets)


def all_tensors(cfg: ModelConfig, lora: Lora | None = None) -> dict[str, Any]:
  """Returns the declaration of every weight, and of every adapter under the key "lora"."""
  table = tensors(cfg)
  return {**table, "lora": _adapters(table["layers"], lora)} if lora else table


def _adapters(layers: dict[str, Tensor], lora: Lora) -> dict[str, Tensor]:
  def factor(
    of: Tensor, shape: tuple[int, int], axes: tuple[str, str], part: str, init: str
  ) -> Tensor:
    # Logical axes without a sharding rule are replicated: "rank", and "adapter" in place of the
    # axis that FSDP shards.
    logical = ("layers", *("adapter" if axis == "embed" else axis for axis in axes))
    name = f"base_model.model.{of.hf_name.removesuffix('.weight')}.{part}.weight"
    return Tensor((of.shape[0], *shape), logical, name, True, init, adapter=True)

  out: dict[str, Tensor] = {}
  for name in lora.matrices:
    weight = layers[name]
    (_, n_in, n_out), (_, axis_in, axis_out) = weight.shape, weight.axes
    a, b = ((n_in, lora.rank), (axis_in, "rank")), ((lora.rank, n_out), ("rank", axis_out))
    out[f"{name}_lora_a"] = factor(weight, *a, "lora_A", "uniform")
    out[f"{name}_lora_b"] = factor(weight, *b, "lora_B", "zeros")
  return out


def abstract_weights(cfg: ModelConfig, dtype: DTypeLike, lora: Lora | None = None) -> Params:
  """Returns shapes and dtypes of the weights (`dtype`) and the adapters (float32)."""

  def abstract(tensor: Tensor) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tensor.shape, jnp.float32 if tensor.adapter else dtype)

  return jax.tree.map(abstract, all_tensors(cfg, lora))


def beside_weights(tree: Params) -> Params:
  """Moves the entries of "lora", if any, into "layers"."""
  rest = {name: part for name, part in tree.items() if name != "lora"}
  return {**rest, "layers": {**tree["layers"], **tree.get("lora", {})}}


def scaled(p: Params, lora: Lora | None) -> Params:
  """Multiplies B of a layer's adapters by alpha / rank, as `llama.linear` expects."""
  if lora is None:
    return p
  return {name: w * lora.scale if name.endswith("_lora_b") else w for name, w in p.items()}


def merge(p: Params, lora: Lora | None, shardings: Params) -> Params:
  """Merges a layer's adapters into its weights, in float32; inside the program.

  Args:
    p: weights and adapters of one layer.
    lora: None returns `p` unchanged.
    shardings: NamedShardings of the training weights, layers stacked. Weights are merged
      in this sharding, before they are resharded for decoding.
  """
  if lora is None:
    return p

  def merged(name: str) -> Float32[Array, "inputs outputs"]:
    a, b = p[f"{name}_lora_a"], p[f"{name}_lora_b"] * lora.scale
    # By default, TPUs and GPUs round the factors to bfloat16 or TF32.
    sum_ = p[name].astype(jnp.float32) + jnp.matmul(a, b, precision="highest")
    stacked = shardings["layers"][name]
    sharding = NamedSharding(stacked.mesh, P(*stacked.spec[1:]))
    return jax.lax.with_sharding_constraint(sum_, sharding)

  plain = {name: w for name, w in p.items() if "_lora_" not in name}
  return {**plain, **{name: merged(name) for name in lora.matrices}}


def merged_matrix(
  weight: Float[np.ndarray, "inputs outputs"],
  a: Float32[np.ndarray, "inputs rank"],
  b: Float32[np.ndarray, "rank outputs"],
  lora: Lora,
) -> Float32[np.ndarray, "inputs outputs"]:
  """Merges an adapter into one layer's matrix, or a slice of it; on the host."""
  return weight.astype(np.float32) + np.float32(lora.scale) * (a @ b)
