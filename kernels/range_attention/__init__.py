"""Attention over packed training rows, where each token sees one contiguous range of keys.

One range per token can express any packing of `[chosen reversed | prompt | rejected]`
pairs (see `simpo_jax/data/packing.py`). There are four implementations, all with a
backward pass.
"""

import importlib
from types import ModuleType
from typing import NotRequired, TypedDict, Unpack

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32

IMPLEMENTATIONS = ("auto", "tpu", "gpu", "xla", "reference")
RESIDUALS = "attention"  # checkpoint name of the residuals of the backward pass
_NATIVE = {"tpu": "tpu", "gpu": "gpu"}  # by platform; "xla" on others


class Shape(TypedDict):
  """The per-device shape of a call, as checked by `unsupported_reason`."""

  heads: int
  kv_heads: int
  head_dim: int
  row_length: int
  dtype: DTypeLike
  window: NotRequired[int | None]
  soft_cap: NotRequired[float | None]


def range_attention(
  q: Float[Array, "B S H h"],
  k: Float[Array, "B S K h"],
  v: Float[Array, "B S K h"],
  k_start: Int32[Array, "B S"],
  k_end: Int32[Array, "B S"],
  positions: Int32[Array, "B S"],
  *,
  window: int | Int32[Array, ""] | None = None,
  soft_cap: float | None = None,
  impl: str = "xla",
) -> Float[Array, "B S H h"]:
  """Softmax attention where query t sees the keys `k_start[t] <= s < k_end[t]`.

  Args:
    q: not yet scaled; H is a multiple of K.
    k_start, k_end: indices into the row. A token's range contains the token itself.
    positions: rotary positions, below S; used only with `window`.
    window: a query sees keys less than `window` positions back (Mistral); may be traced.
    soft_cap: scores become `cap * tanh(scores / cap)` (Gemma 2, arXiv:2408.00118).
    impl: one of `IMPLEMENTATIONS`; "auto" selects by the default device's platform.

  Returns:
    The attention output in q's dtype; scores and softmax are computed in float32.
  """
  if impl == "auto":
    impl = _NATIVE.get(jax.default_backend(), "xla")
  attend = _module(impl).attend
  return attend(q, k, v, k_start, k_end, positions, window=window, soft_cap=soft_cap)


def select_impl(impl: str, platform: str, **shape: Unpack[Shape]) -> tuple[str, str | None]:
  """Selects an implementation; "auto" falls back to "xla" if the platform's kernel cannot run.

  Args:
    impl: the requested implementation, one of `IMPLEMENTATIONS`.
    platform: "cpu", "tpu" or "gpu".
    **shape: the shape of the calls.

  Returns:
    The implementation, and why it is not the platform's kernel (None if it is).

  Raises:
    ValueError: `impl` was requested by name and does not support this shape; says why.
  """
  requested, impl = impl, _NATIVE.get(platform, "xla") if impl == "auto" else impl
  reason = unsupported_reason(impl, platform, **shape)
  if reason and requested != "auto":
    raise ValueError(reason)
  return ("xla", reason) if reason else (impl, None)


def unsupported_reason(impl: str, platform: str, **shape: Unpack[Shape]) -> str | None:
  """Returns why `impl` does not support a shape on a platform; None if it does."""
  if impl not in _NATIVE.values():
    return None
  if _NATIVE.get(platform) != impl:
    return f"the {impl} kernel does not run on {platform}"
  return _module(impl).unsupported_reason(**shape)


def _module(impl: str) -> ModuleType:
  # Imported lazily: Pallas is slow to import and not available on every machine.
  if impl not in IMPLEMENTATIONS:
    raise ValueError(f"range attention has no implementation {impl!r}: {IMPLEMENTATIONS}")
  return importlib.import_module(f"{__name__}.{impl}")
