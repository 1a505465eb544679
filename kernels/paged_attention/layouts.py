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
class Put(Protocol):
  """Puts keys and values into the pool, in place when the pool is a loop carry.

  Args:
    pool: the KV pool.
    page_ids, place: the page of each token, and its place there; a page past the pool's end is
      none, and nothing is written.
    k, v: keys and values, in the pool's dtype.
  """

  def __call__(
    self,
    pool: KVPool,
    page_ids: Int32[Array, "B T"],
    place: Int32[Array, "B T"],
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

  put: Put
  read: Read


def _put_tokens(pool: KVPool, page_ids: Array, place: Array, k: Array, v: Array, /) -> KVPool:
  B, T, K, h = k.shape
  kv = jnp.stack([k, v], axis=3).reshape(B, T, 2 * K * h)
  return pool.at[page_ids, place].set(kv, mode="drop")


def _read_tokens(
  pool: KVPool, page_ids: Int32[Array, " I"], live: Int32[Array, " I"], h: int, /
) -> tuple[Keys, Values]:
  _, page, lanes = pool.shape
  kv = jnp.take(pool, page_ids, axis=0, mode="clip").reshape(-1, page, lanes // (2 * h), 2, h)
  written = jnp.arange(page, dtype=jnp.int32) < live[:, None]
  values = jnp.where(written[:, :, None, None], kv[:, :, :, 1], 0)
  return kv[:, :, :, 0].transpose(0, 2, 3, 1), values.transpose(0, 2, 1, 3)


def _put_heads(pool: KVPool, page_ids: Array, place: Array, k: Array, v: Array, /) -> KVPool:
  N, page, _ = pool.shape
  K, h = k.shape[2:]
  if page_ids.size == 1:
    # XLA would make an update of a scatter to one place, and copy the pool: add no page.
    page_ids = jnp.pad(page_ids, ((0, 0), (0, 1)), constant_values=N)
    place = jnp.pad(place, ((0, 0), (0, 1)))
    k, v = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (k, v))
  keys = pool.reshape(N, 2, K, h, page).at[page_ids, 0, :, :, place].set(k, mode="drop")
  values = keys.reshape(N, 2, K, page, h).at[page_ids, 1, :, place].set(v, mode="drop")
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
TOKEN_MAJOR = Layout(_put_tokens, _read_tokens)
# All keys of a page, `[K, h, page]`, then all its values, `[K, page, h]`: both are right
# operands of matrix products as they lie in memory, while others would have to be transposed.
HEAD_MAJOR = Layout(_put_heads, _read_heads)
