"""Attention over a paged KV pool: one public function, several implementations.

The pool is token-major, `[L * P, page, 2K, h]`, K and V of a head interleaved on
the head axis. A layer is chosen by offsetting its page ids by `layer * P`, so
nothing ever slices a layer out of the pool.
"""

import jax
from simpo_jax.kernels.paged_attention import reference, xla

IMPLEMENTATIONS = ("auto", "reference", "xla")


def paged_attention(
  q: jax.Array,
  pool: jax.Array,
  page_ids: jax.Array,
  lengths: jax.Array,
  window: int | None = None,
  impl: str = "auto",
) -> jax.Array:
  """Attention of each sequence's newest token to its own pages (one decode step).

  Args:
    q: `[B, H, h]`, not yet scaled.
    pool: `[L * P, page, 2K, h]`; head 2k holds K and head 2k + 1 holds V.
    page_ids: int32 `[B, pages_per_seq]`, offset for the layer; entries past the
      sequence's length may hold anything.
    lengths: int32 `[B]`, tokens in the cache, the newest included; 0 for a dead row.
    window: a query sees only this many newest tokens.
    impl: "reference", "xla", or "auto".

  Returns:
    `[B, H, h]` in q's dtype; dead rows are 0.
  """
  if impl not in IMPLEMENTATIONS:
    raise ValueError(f"paged attention has no implementation {impl!r}: {IMPLEMENTATIONS}")
  if impl == "reference":
    return reference.attend(q[:, None], pool, page_ids, lengths[:, None] - 1, window)[:, 0]
  return xla.paged_attention(q, pool, page_ids, lengths, window)


def paged_prefill(
  q: jax.Array,
  pool: jax.Array,
  page_ids: jax.Array,
  positions: jax.Array,
  window: int | None = None,
) -> jax.Array:
  """Attention of a chunk of prompt tokens `q [B, T, H, h]` to the pages written so far.

  `positions`, int32 `[B, T]`, is each token's index in its sequence, -1 for padding;
  the chunk's own keys and values must be in the pool already. Other arguments and
  the result are those of `paged_attention`.
  """
  return reference.attend(q, pool, page_ids, positions, window)
