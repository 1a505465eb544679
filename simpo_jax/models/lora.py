"""Low-rank adapters (LoRA, arXiv:2106.09685): W + (alpha / rank) A B, with W frozen.

Adapters are declared like the weights and lie beside them, under "lora", stacked by layer:
`q_lora_a [L, D, r]` and `q_lora_b [L, r, H*h]` for the matrix `q [L, D, H*h]`. A factor is
cut over tensor parallelism as that side of its matrix is. Everything else replicates it:
it is small, and a gather of its own in each layer would take longer than it saves memory.

Training and evaluation add (x A) B to x W; generation merges once, where the weights are
laid out for decoding anyway. Names and files are those of the `peft` package.
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
  """Which matrices have an adapter, and of what size."""

  rank: int
  alpha: float
  targets: tuple[str, ...]  # of `LORA_TARGETS`

  @property
  def scale(self) -> float:
    return self.alpha / self.rank

  @property
  def matrices(self) -> tuple[str, ...]:
    """The targets by their names in `llama.tensors`."""
    return tuple(target.removesuffix("_proj") for target in self.targets)


def make_lora(train: TrainSettings) -> Lora | None:
  """The adapters that the settings ask for, if any."""
  if not train.lora_rank:
    return None
  targets = tuple(target for target in LORA_TARGETS if target in train.lora_targets)
  return Lora(train.lora_rank, train.lora_alpha, targets)


def all_tensors(cfg: ModelConfig, lora: Lora | None = None) -> dict[str, Any]:
  """The declaration of every weight, and under "lora" of every adapter, if there are any."""
  table = tensors(cfg)
  return {**table, "lora": _adapters(table["layers"], lora)} if lora else table


def _adapters(layers: dict[str, Tensor], lora: Lora) -> dict[str, Tensor]:
  def factor(
    of: Tensor, shape: tuple[int, int], axes: tuple[str, str], part: str, init: str
  ) -> Tensor:
    # Names that no rule maps are never cut: the rank, and the axis that FSDP cuts in a weight.
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
  """Shapes and dtypes of the weights, in `dtype`, and of the adapters, in float32."""

  def abstract(tensor: Tensor) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tensor.shape, jnp.float32 if tensor.adapter else dtype)

  return jax.tree.map(abstract, all_tensors(cfg, lora))


def beside_weights(tree: Params) -> Params:
  """A tree of weights with the adapters, if any, among the entries of "layers"."""
  rest = {name: part for name, part in tree.items() if name != "lora"}
  return {**rest, "layers": {**tree["layers"], **tree.get("lora", {})}}


def scaled(p: Params, lora: Lora | None) -> Params:
  """A layer's weights and adapters as `llama.linear` takes them: alpha / rank is in B."""
  if lora is None:
    return p
  return {name: w * lora.scale if name.endswith("_lora_b") else w for name, w in p.items()}


def merge(p: Params, lora: Lora | None, shardings: Params) -> Params:
  """A layer's weights with its adapters in them, float32; on devices, inside the program.

  Args:
    p: weights and adapters of one layer.
    lora: None leaves them as they are.
    shardings: NamedShardings as in training, layers stacked. The sum is made where the
      weights are, before they are laid out anew.
  """
  if lora is None:
    return p

  def merged(name: str) -> Float32[Array, "inputs outputs"]:
    a, b = p[f"{name}_lora_a"], p[f"{name}_lora_b"] * lora.scale
    # TPUs and GPUs would round the factors to fewer bits otherwise.
    sum_ = p[name].astype(jnp.float32) + jnp.matmul(a, b, precision="highest")
    lies = shardings["layers"][name]
    return jax.lax.with_sharding_constraint(sum_, NamedSharding(lies.mesh, P(*lies.spec[1:])))

  plain = {name: w for name, w in p.items() if "_lora_" not in name}
  return {**plain, **{name: merged(name) for name in lora.matrices}}


def merged_matrix(
  weight: Float[np.ndarray, "inputs outputs"],
  a: Float32[np.ndarray, "inputs rank"],
  b: Float32[np.ndarray, "rank outputs"],
  lora: Lora,
) -> Float32[np.ndarray, "inputs outputs"]:
  """One layer's matrix, or a slice of it, with its adapter in it; on the host."""
  return weight.astype(np.float32) + np.float32(lora.scale) * (a @ b)
