"""Attention over a paged KV pool: one contract, four implementations.

The pool is token-major, `[L * P, page, 2 * K * h]`: the last axis holds, head by
head, a token's K and then its V. A layer is chosen by offsetting its page ids by
`layer * P`, so nothing ever slices a layer out of the pool.
"""

import importlib
from types import ModuleType
from typing import NotRequired, TypedDict, Unpack

import jax
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32

IMPLEMENTATIONS = ("auto", "tpu", "gpu", "xla", "reference")
_NATIVE = {"tpu": "tpu", "gpu": "gpu", "cuda": "gpu", "cpu": "xla"}  # by platform


class Shape(TypedDict):
  """What a call looks like on one device, as far as kernels can refuse it."""

  heads: int
  kv_heads: int
  head_dim: int
  page_size: int
  dtype: DTypeLike
  queries: NotRequired[int]  # T: 1 in decoding, a chunk's in prefill
  slots: NotRequired[int]  # B, dead rows included
  pages_per_seq: NotRequired[int]


def paged_attention(
  q: Float[Array, "B H h"],
  pool: Float[Array, "pages page lanes"],
  page_ids: Int32[Array, "B pages_per_seq"],
  lengths: Int32[Array, " B"],
  *,
  window: int | None = None,
  soft_cap: float | None = None,
  impl: str = "auto",
) -> Float[Array, "B H h"]:
  """Attention of each sequence's newest token to its own pages (one decode step).

  Args:
    q: float32 or bfloat16, not yet scaled.
    pool: all layers' pages, `[L * P, page, 2 * K * h]`, in q's dtype.
    page_ids: offset for the layer; entries past the sequence's end may hold anything.
    lengths: tokens in the cache, the newest included; 0 for a dead row.
    window: a query sees only this many newest tokens.
    soft_cap: scores become `cap * tanh(scores / cap)` (Gemma 2, arXiv:2408.00118).
    impl: one of `IMPLEMENTATIONS`; "auto" is that of the default device's platform.

  Returns:
    The attention in q's dtype; dead rows are 0.
  """
  out = paged_prefill(
    q[:, None],
    pool,
    page_ids,
    lengths - 1,
    (lengths > 0).astype("int32"),
    window=window,
    soft_cap=soft_cap,
    impl=impl,
  )
  return out[:, 0]


def paged_prefill(
  q: Float[Array, "B T H h"],
  pool: Float[Array, "pages page lanes"],
  page_ids: Int32[Array, "B pages_per_seq"],
  start: Int32[Array, " B"],
  count: Int32[Array, " B"],
  *,
  window: int | None = None,
  soft_cap: float | None = None,
  impl: str = "auto",
) -> Float[Array, "B T H h"]:
  """Attention of a chunk of each sequence to its pages, the chunk's own tokens included.

  Query t of row b, `t < count[b]`, sees the keys `s <= start[b] + t`. The chunk's keys
  and values must be in the pool already.

  Args:
    start: the position of `q[:, 0]` in its sequence.
    count: queries that are real, 0 to T.
    q, pool, page_ids, window, soft_cap, impl: as for `paged_attention`.

  Returns:
    The attention in q's dtype; 0 where there is no query.
  """
  if impl == "auto":
    impl = _NATIVE[jax.default_backend()]
  return _module(impl).attend(q, pool, page_ids, start, count, window=window, soft_cap=soft_cap)


def select_impl(impl: str, platform: str, **shape: Unpack[Shape]) -> tuple[str, str | None]:
  """The implementation to build with, and why it is not the platform's own kernel.

  Args:
    impl: what was asked for, one of `IMPLEMENTATIONS`.
    platform: "cpu", "tpu" or "gpu".
    **shape: what it will be called with.

  Raises:
    ValueError: `impl` was asked for by name and cannot take this shape; says why.
  """
  asked, impl = impl, _NATIVE[platform] if impl == "auto" else impl
  reason = unsupported_reason(impl, platform, **shape)
  if reason and asked != "auto":
    raise ValueError(reason)
  return ("xla", reason) if reason else (impl, None)


def unsupported_reason(impl: str, platform: str, **shape: Unpack[Shape]) -> str | None:
  """Why `impl` cannot take a shape on a platform, or None if it can."""
  if impl not in ("tpu", "gpu"):
    return None
  if _NATIVE[platform] != impl:
    return f"the {impl} kernel does not run on {platform}"
  return _module(impl).unsupported_reason(**shape)


def _module(impl: str) -> ModuleType:
  # Only what is used is imported: Pallas is slow to import and not on every machine.
  if impl not in IMPLEMENTATIONS:
    raise ValueError(f"paged attention has no implementation {impl!r}: {IMPLEMENTATIONS}")
  return importlib.import_module(f"{__name__}.{impl}")
