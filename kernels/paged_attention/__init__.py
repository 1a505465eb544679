"""Attention over a paged KV pool (PagedAttention, arXiv:2309.06180): five implementations.

The pool is `[L * P, page, 2 * K * h]`. A layer is selected by offsetting its page ids by
`layer * P`, so that no layer is ever sliced out of the pool. Most implementations want a page
token-major: the last axis contains, head by head, a token's K followed by its V. `write` puts
tokens where an implementation looks for them (`layouts.py`).
"""

import importlib
from types import ModuleType
from typing import NotRequired, TypedDict, Unpack

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32

from simpo_jax.kernels.paged_attention.layouts import HEAD_MAJOR, TOKEN_MAJOR, KVPool

IMPLEMENTATIONS = ("auto", "tpu", "gpu", "cpu", "xla", "reference")
_NATIVE = {"tpu": "tpu", "gpu": "gpu", "cuda": "gpu", "cpu": "cpu"}  # by platform


class Shape(TypedDict):
  """The per-device shape of a call, as checked by `unsupported_reason`."""

  heads: int
  kv_heads: int
  head_dim: int
  page_size: int
  dtype: DTypeLike
  queries: NotRequired[int]  # T: 1 in decoding, the chunk size in prefill
  slots: NotRequired[int]  # B, including dead rows
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
  """Attention of each sequence's newest token to its pages (one decode step).

  Args:
    q: float32 or bfloat16, not yet scaled.
    pool: all layers' pages, `[L * P, page, 2 * K * h]`, filled by `write` for the same `impl`.
    page_ids: offset for the layer; entries past the sequence's end are ignored.
    lengths: tokens in the cache, including the newest; 0 for a dead row.
    window: a query sees only the `window` newest tokens.
    soft_cap: scores become `cap * tanh(scores / cap)` (Gemma 2, arXiv:2408.00118).
    impl: one of `IMPLEMENTATIONS`; "auto" selects by the default device's platform.

  Returns:
    The attention output in q's dtype; 0 in dead rows.
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
  """Attention of a chunk of each sequence to its pages, including the chunk itself.

  Query t of row b, `t < count[b]`, sees the keys `s <= start[b] + t`. The chunk's keys
  and values must already be in the pool.

  Args:
    start: the position of `q[:, 0]` in its sequence.
    count: number of valid queries, 0 to T.
    q, pool, page_ids, window, soft_cap, impl: as for `paged_attention`.

  Returns:
    The attention output in q's dtype; 0 for invalid queries.
  """
  attend = _module(impl).attend
  return attend(q, pool, page_ids, start, count, window=window, soft_cap=soft_cap)


def write(
  pool: KVPool,
  page_ids: Int32[Array, "B pages_per_seq"],
  start: Int32[Array, " B"],
  count: Int32[Array, " B"],
  k: Float[Array, "B T K h"],
  v: Float[Array, "B T K h"],
  *,
  impl: str = "auto",
) -> KVPool:
  """Writes new keys and values into the pool, where `impl` looks for them.

  It is updated in place when it is a loop carry.

  Args:
    pool: has the heads of k and v, in any dtype.
    page_ids: the pages of each row's sequence, offset for the layer.
    start: index of the first new token in its sequence.
    count: number of valid tokens among the T; the others are not written.
    k, v: keys, already rotated, and values.
    impl: as for `paged_attention`.
  """
  page = pool.shape[1]
  token = jnp.arange(k.shape[1], dtype=jnp.int32)
  position = start[:, None] + token
  column = jnp.clip(position // page, 0, page_ids.shape[1] - 1)
  ids = jnp.take_along_axis(page_ids, column, axis=1)
  ids = jnp.where(token < count[:, None], ids, pool.shape[0])
  layout = HEAD_MAJOR if _chosen(impl) == "cpu" else TOKEN_MAJOR
  return layout.put(pool, ids, position % page, k.astype(pool.dtype), v.astype(pool.dtype))


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
  requested, impl = impl, _NATIVE[platform] if impl == "auto" else impl
  reason = unsupported_reason(impl, platform, **shape)
  if reason and requested != "auto":
    raise ValueError(reason)
  return ("xla", reason) if reason else (impl, None)


def unsupported_reason(impl: str, platform: str, **shape: Unpack[Shape]) -> str | None:
  """Returns why `impl` does not support a shape on a platform; None if it does."""
  if impl not in _NATIVE.values():
    return None
  if _NATIVE[platform] != impl:
    return f"the {impl} kernel does not run on {platform}"
  return _module(impl).unsupported_reason(**shape)


def _module(impl: str) -> ModuleType:
  # Imported lazily: Pallas is slow to import and not available on every machine.
  return importlib.import_module(f"{__name__}.{_chosen(impl)}")


def _chosen(impl: str) -> str:
  if impl not in IMPLEMENTATIONS:
    raise ValueError(f"paged attention has no implementation {impl!r}: {IMPLEMENTATIONS}")
  return _NATIVE[jax.default_backend()] if impl == "auto" else impl
