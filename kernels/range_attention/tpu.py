"""Range attention for TPU: checks the shape, then calls JAX's splash attention."""

import importlib

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32

LANES = 128
MOST_TOKENS = 2**15  # per row: k_start and k_end are packed into 32 bits
_SPLASH = "simpo_jax.kernels.range_attention.splash"


def attend(
  q: Float[Array, "B S H h"],
  k: Float[Array, "B S K h"],
  v: Float[Array, "B S K h"],
  k_start: Int32[Array, "B S"],
  k_end: Int32[Array, "B S"],
  positions: Int32[Array, "B S"],
  *,
  window: int | None = None,
  soft_cap: float | None = None,
  interpret: bool = False,
) -> Float[Array, "B S H h"]:
  """See `simpo_jax.kernels.range_attention.range_attention`.

  `interpret=True` runs it on CPU.
  """
  reason = unsupported_reason(
    heads=q.shape[2],
    kv_heads=k.shape[2],
    head_dim=q.shape[3],
    row_length=q.shape[1],
    dtype=q.dtype,
    window=window,
    soft_cap=soft_cap,
  )
  if reason:
    raise ValueError(reason)
  del positions
  splash = importlib.import_module(_SPLASH)
  return splash.attend(q, k, v, k_start, k_end, soft_cap=soft_cap, interpret=interpret)


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
  """Returns why the kernel does not support a shape; None if it does.

  Supported shapes compile for v5e, v5p and v6e.
  """
  del soft_cap  # any value is supported
  dtype = jnp.dtype(dtype)
  if missing := _missing():
    return f"jax {jax.__version__} has not got the tpu kernel's splash attention: {missing}"
  if dtype not in (jnp.float32, jnp.bfloat16):
    return f"the tpu kernel computes in float32 or bfloat16, not {dtype.name}"
  if heads % kv_heads:
    return f"{heads} query heads are not a multiple of {kv_heads} KV heads"
  if row_length % LANES or row_length > MOST_TOKENS:
    return (
      f"the tpu kernel needs rows of a multiple of {LANES} tokens, at most {MOST_TOKENS}, "
      f"not {row_length}"
    )
  if window is not None and window < row_length:
    return (
      f"the tpu kernel has no sliding window: one of {window} tokens cuts a range of a row of "
      f"{row_length} in two"
    )
  return None


def _missing() -> str | None:
  """Why splash attention cannot be imported (a jax release may move it); None if it can."""
  try:
    importlib.import_module(_SPLASH)
  except ImportError as error:
    return str(error)
  return None
