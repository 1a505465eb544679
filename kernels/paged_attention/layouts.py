"""The layouts of a page in the KV pool, and how tokens are written to and read from it.

In every layout the pool is `[L * P, page, 2 * K * h]`; a layout says what a page's numbers are.
"""

from typing import NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

# The pages of all layers, `[L * P, page, 2 * K * h]`.
KVPool = Float[Array, "pages page lanes"]
Keys = Float[Array, "I K h page"]
Values = Float[Array, "I K page h"]


@runtime_checkable
class Write(Protocol):
  """Writes new keys and values into the pool, in place when the pool is a loop carry.

  Args:
    pool: has the heads of k and v, in any dtype.
    page_ids: the pages of each row's sequence, offset for the layer.
    start: index of the first new token in its sequence.
    count: number of valid tokens among the T; the others are not written.
    k, v: keys, already rotated, and values.
  """

  def __call__(
    self,
    pool: KVPool,
    page_ids: Int32[Array, "B pages_per_seq"],
    start: Int32[Array, " B"],
    count: Int32[Array, " B"],
    k: Float[Array, "B T K h"],
    v: Float[Array, "B T K h"],
    /,
  ) -> KVPool: ...


@runtime_checkable
class Read(Protocol):
  """Reads whole pages, as the operands of a matrix product each.

  Args:
    pool: the KV pool.
    page_ids: I pages, within the pool.
    live: the values of a page's tokens from here on are returned as 0, since what no token
      has written may be NaN. (Such keys are returned as they are.)
    h: head dim.

  Returns:
    Keys `[I, K, h, page]` and values `[I, K, page, h]`.
  """

  def __call__(
    self, pool: KVPool, page_ids: Int32[Array, " I"], live: Int32[Array, " I"], h: int, /
  ) -> tuple[Keys, Values]: ...


class Layout(NamedTuple):
  """How the tokens of a page lie in the pool."""

  write: Write
  read: Read


def _places(
  pool: KVPool,
  page_ids: Int32[Array, "B pages_per_seq"],
  start: Int32[Array, " B"],
  count: Int32[Array, " B"],
  T: int,
) -> tuple[Int32[Array, "B T"], Int32[Array, "B T"]]:
  """The page of each new token, past the pool's end for an invalid one, and its place there."""
  page = pool.shape[1]
  token = jnp.arange(T, dtype=jnp.int32)
  position = start[:, None] + token
  column = jnp.clip(position // page, 0, page_ids.shape[1] - 1)
  ids = jnp.take_along_axis(page_ids, column, axis=1)
  return jnp.where(token < count[:, None], ids, pool.shape[0]), position % page


def _write_tokens(
  pool: KVPool,
  page_ids: Int32[Array, "B pages_per_seq"],
  start: Int32[Array, " B"],
  count: Int32[Array, " B"],
  k: Float[Array, "B T K h"],
  v: Float[Array, "B T K h"],
  /,
) -> KVPool:
  B, T, K, h = k.shape
  ids, place = _places(pool, page_ids, start, count, T)
  kv = jnp.stack([k, v], axis=3).reshape(B, T, 2 * K * h).astype(pool.dtype)
  return pool.at[ids, place].set(kv, mode="drop")


def _read_tokens(
  pool: KVPool, page_ids: Int32[Array, " I"], live: Int32[Array, " I"], h: int, /
) -> tuple[Keys, Values]:
  _, page, lanes = pool.shape
  kv = jnp.take(pool, page_ids, axis=0, mode="clip").reshape(-1, page, lanes // (2 * h), 2, h)
  written = jnp.arange(page, dtype=jnp.int32) < live[:, None]
  values = jnp.where(written[:, :, None, None], kv[:, :, :, 1], 0)
  return kv[:, :, :, 0].transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)


def _write_heads(
  pool: KVPool,
  page_ids: Int32[Array, "B pages_per_seq"],
  start: Int32[Array, " B"],
  count: Int32[Array, " B"],
  k: Float[Array, "B T K h"],
  v: Float[Array, "B T K h"],
  /,
) -> KVPool:
  N, page, _ = pool.shape
  if k.size == k.shape[2] * k.shape[3]:
    # XLA would make an update of a scatter to one place, and copy the pool: add a dead token.
    k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (k, v))
  _, T, K, h = k.shape
  ids, place = _places(pool, page_ids, start, count, T)
  k, v = k.astype(pool.dtype), v.astype(pool.dtype)
  keys = pool.reshape(N, 2, K, h, page).at[ids, 0, :, :, place].set(k, mode="drop")
  values = keys.reshape(N, 2, K, page, h).at[ids, 1, :, place].set(v, mode="drop")
  return values.reshape(pool.shape)


def _read_heads(
  pool: KVPool, page_ids: Int32[Array, " I"], live: Int32[Array, " I"], h: int, /
) -> tuple[Keys, Values]:
  N, page, lanes = pool.shape
  K = lanes // (2 * h)
  halves = pool.reshape(N * 2, K * h * page)
  keys = halves.at[2 * page_ids].get(mode="promise_in_bounds")
  values = halves.at[2 * page_ids + 1].get(mode="promise_in_bounds")
  token = jnp.tile(jnp.arange(page * h, dtype=jnp.int32) // h, K)
  values = jnp.where(token < live[:, None], values, 0)
  return keys.reshape(-1, K, h, page), values.reshape(-1, K, page, h)


# A token's keys and values of all heads are contiguous: head by head, K followed by V.
TOKEN_MAJOR = Layout(_write_tokens, _read_tokens)
# All keys of a page, `[K, h, page]`, then all its values, `[K, page, h]`: both are right
# operands of matrix products as they lie in memory, while others would have to be transposed.
HEAD_MAJOR = Layout(_write_heads, _read_heads)
