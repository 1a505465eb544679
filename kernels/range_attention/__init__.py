"""Attention over packed training rows, where each token sees one range of keys.

That one range per token expresses any packing of `[chosen reversed | prompt |
rejected]` pairs (see `simpo_jax/data/packing.py`). One contract, four implementations,
all with a backward pass.
"""

import importlib
from types import ModuleType
from typing import NotRequired, TypedDict, Unpack

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32

IMPLEMENTATIONS = ("auto", "tpu", "gpu", "xla", "reference")
RESIDUALS = "attention"  # what the backward pass needs of the forward pass, to checkpoint policies
_NATIVE = {"tpu": "tpu", "gpu": "gpu"}  # by platform; others have no kernel of their own: XLA


class Shape(TypedDict):
  """What a call looks like on one device, as far as kernels can refuse it."""

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
    positions: rotary, below S; used by `window` alone.
    window: a query sees keys less than this many positions back (Mistral); may be traced.
    soft_cap: scores become `cap * tanh(scores / cap)` (Gemma 2, arXiv:2408.00118).
    impl: one of `IMPLEMENTATIONS`; "auto" is that of the default device's platform.

  Returns:
    The attention in q's dtype; scores and softmax are float32.
  """
  if impl == "auto":
    impl = _NATIVE.get(jax.default_backend(), "xla")
  attend = _module(impl).attend
  return attend(q, k, v, k_start, k_end, positions, window=window, soft_cap=soft_cap)


def select_impl(impl: str, platform: str, **shape: Unpack[Shape]) -> tuple[str, str | None]:
  """The implementation to build with, and why it is not the platform's own kernel.

  Args:
    impl: what was asked for, one of `IMPLEMENTATIONS`.
    platform: "cpu", "tpu" or "gpu".
    **shape: what it will be called with.

  Raises:
    ValueError: `impl` was asked for by name and cannot take this shape; says why.
  """
  asked, impl = impl, _NATIVE.get(platform, "xla") if impl == "auto" else impl
  reason = unsupported_reason(impl, platform, **shape)
  if reason and asked != "auto":
    raise ValueError(reason)
  return ("xla", reason) if reason else (impl, None)


def unsupported_reason(impl: str, platform: str, **shape: Unpack[Shape]) -> str | None:
  """Why `impl` cannot take a shape on a platform, or None if it can."""
  if impl not in _NATIVE.values():
    return None
  if _NATIVE.get(platform) != impl:
    return f"the {impl} kernel does not run on {platform}"
  return _module(impl).unsupported_reason(**shape)


def _module(impl: str) -> ModuleType:
  # Only what is used is imported: Pallas is slow to import and not on every machine.
  if impl not in IMPLEMENTATIONS:
    raise ValueError(f"range attention has no implementation {impl!r}: {IMPLEMENTATIONS}")
  return importlib.import_module(f"{__name__}.{impl}")
