"""Range attention for GPU, with flash attention from tokamax or cuDNN.

tokamax accepts a range of keys per query and skips blocks that no query of a block sees,
forward and backward (Mosaic kernels on Hopper and Blackwell, Triton kernels on older GPUs).
cuDNN needs the mask as an `[S, S]` bias, which limits the row length, and skips no blocks.
tokamax is used if it is installed; neither is a dependency of jax.
"""

import importlib.util
from typing import Any, cast

import jax
import jax.numpy as jnp
from absl import flags
from jax.extend import backend
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32

from simpo_jax.distributed.chips import chip_of
from simpo_jax.kernels.range_attention.reference import dense_mask

MOST_CUDNN_TOKENS = 4096  # per row: its bias has 32 MiB, also in the backward pass
MOSAIC_GPU = (9, 10)  # compute capabilities supported by tokamax's Mosaic kernels
_INSTALL = "pip install tokamax for the gpu kernel"


def attend(
  q: Float[Array, "B S H h"],
  k: Float[Array, "B S K h"],
  v: Float[Array, "B S K h"],
  k_start: Int32[Array, "B S"],
  k_end: Int32[Array, "B S"],
  positions: Int32[Array, "B S"],
  *,
  window: int | Int32[Array, ""] | None = None,
  soft_cap: float | None = None,
  engine: str = "auto",
) -> Float[Array, "B S H h"]:
  """See `simpo_jax.kernels.range_attention.range_attention`.

  Args:
    engine: auto, cudnn, tokamax, or a tokamax implementation (mosaic_gpu, triton, xla_chunked).
  """
  if engine == "auto":
    engine = _engine(window)
  if engine == "cudnn":
    if soft_cap is not None:
      raise ValueError("cuDNN has no soft cap on scores")
    seen = dense_mask(k_start, k_end, positions, window)
    return jax.nn.dot_product_attention(q, k, v, mask=seen[:, None], implementation="cudnn")
  # tokamax's public function has no argument for ranges.
  from tokamax._src.ops.attention import api, base

  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()  # otherwise tokamax would parse the caller's command line
  mask = base.Mask(k_start=k_start[:, None], k_end=k_end[:, None])
  if engine == "tokamax":
    engine = "mosaic_gpu" if int(_capability()) in MOSAIC_GPU else "triton"
  return api.IMPLEMENTATIONS[engine](
    q, k, v, mask=mask, logits_scale=q.shape[-1] ** -0.5, logits_soft_cap=soft_cap
  )


def unsupported_reason(
  *,
  heads: int,
  kv_heads: int,
  head_dim: int,
  row_length: int,
  dtype: DTypeLike,
  window: int | None = None,
  soft_cap: float | None = None,
) -> str | None:
  """Returns why neither library supports a shape here; None if one does."""
  dtype = jnp.dtype(dtype)
  if dtype != jnp.bfloat16:
    return f"the gpu kernel computes in bfloat16, not {dtype.name}"
  if heads % kv_heads:
    return f"{heads} query heads are not a multiple of {kv_heads} KV heads"
  if head_dim % 8 or head_dim > 128:
    return f"the gpu kernel takes head dimensions up to 128, multiples of 8, not {head_dim}"
  engine = _engine(window)
  if engine == "tokamax":
    return None
  why = "tokamax has no sliding window over packed rows" if _has_tokamax() else _INSTALL
  if soft_cap is not None:
    return f"cuDNN has no soft cap on scores; {why}"
  if row_length > MOST_CUDNN_TOKENS:
    return f"cuDNN would hold a mask of {row_length} x {row_length} a row; {why}"
  if not _has_cudnn():
    return f"neither tokamax nor cuDNN is there; {_INSTALL}"
  return None


def _engine(window: int | Int32[Array, ""] | None) -> str:
  return "tokamax" if window is None and _has_tokamax() else "cudnn"


def _has_tokamax() -> bool:
  return importlib.util.find_spec("tokamax") is not None


def _has_cudnn() -> bool:
  from jax._src.lib import cuda_versions

  return cuda_versions is not None and cuda_versions.cudnn_get_version() > 0


def _capability() -> float:
  """Compute capability of the GPU to compile for: the mesh's, which may not be attached.

  Raises:
    ValueError: the mesh's devices are not attached, and of an unknown kind.
  """
  local = cast(Any, backend.get_default_device())  # jaxlib declares no type
  target = jax.sharding.get_abstract_mesh().abstract_device
  if target is None or target.device_kind == local.device_kind:
    return float(local.compute_capability)
  chip = chip_of(target.device_kind)
  if chip is None or not chip.capability:
    raise ValueError(f"{target.device_kind} is not a GPU in simpo_jax/distributed/chips.py")
  return chip.capability
