"""Paged attention for NVIDIA GPUs, in Pallas (Triton): decoding and prefill chunks.

A program computes one KV head of one row, which is one sequence or, in long chunks, one tile
of its queries. All query heads of the KV head form the rows of one matmul. If there are too
few rows and heads to fill a GPU, the keys of a row are also split between programs: each
iterates over its blocks of keys with an online softmax (arXiv:1805.02867), and the partial
results are merged by their log-sum-exp, as in Flash-Decoding. Only keys that some query of
the row sees are loaded, through the page table.

Triton's arrays have power-of-two sizes: rows, lanes and keys are padded and masked.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Float32, Int32

from simpo_jax.arith import ceil_div
from simpo_jax.kernels.loops import fori_loop
from simpo_jax.kernels.paged_attention.refs import Ref

ROWS = 16  # minimum rows of a matmul on tensor cores
STAGES = 3  # pipeline stages of the loop over blocks: page ids, keys and values, arithmetic
KIB = 2**10
SHARED = 96 * KIB  # target for shared memory; a GeForce or an L4 has 99 KiB
SHARED_MOST = 227 * KIB  # of an H100
PROGRAMS = 8 * 132  # keeps the 132 multiprocessors of an H100 busy until the longest row ends
LOG2E = math.log2(math.e)

Sums = tuple[Array, Array, Array]  # of each row: maximum score, sum of weights, weighted sum of V


def attend(
  q: Float[Array, "B T H h"],
  pool: Float[Array, "pages page lanes"],
  page_ids: Int32[Array, "B pages_per_seq"],
  start: Int32[Array, " B"],
  count: Int32[Array, " B"],
  *,
  window: int | None = None,
  soft_cap: float | None = None,
  interpret: bool = False,
) -> Float[Array, "B T H h"]:
  """See `simpo_jax.kernels.paged_attention.paged_prefill`.

  `interpret` is passed to `pl.pallas_call`; True runs the kernel on CPU.
  """
  B, T, H, h = q.shape
  page, lanes = pool.shape[1:]
  K = lanes // (2 * h)
  tile, R, block, warps, _ = tile_plan(H, K, h, q.dtype, T)
  rows = B * ceil_div(T, tile)
  keys = page_ids.shape[1] * page
  splits = num_splits(rows * K, R, block, keys if window is None else min(keys, window + tile))
  kernel = functools.partial(
    _kernel,
    tile=tile,
    R=R,
    width=_padded_head_dim(h),
    block=block,
    page=page,
    window=window,
    soft_cap=soft_cap,
  )
  parts = [jax.ShapeDtypeStruct((splits, *q.shape), q.dtype if splits == 1 else jnp.float32)]
  if splits > 1:
    parts.append(jax.ShapeDtypeStruct((splits, B, T, H), jnp.float32))
  # KV heads are the first grid axis, so that the heads of a row run at the same time: their
  # keys are adjacent in memory.
  out, *lse = pl.pallas_call(
    kernel,
    out_shape=parts,
    grid=(K, rows, splits),
    compiler_params=plgpu.CompilerParams(num_warps=warps, num_stages=STAGES),
    name="paged_attention",
    interpret=interpret,
  )(page_ids, start, count, q, pool.reshape(-1, lanes))
  return _merge(out, lse[0]).astype(q.dtype) if lse else out[0]


def unsupported_reason(
  *,
  heads: int,
  kv_heads: int,
  head_dim: int,
  page_size: int,
  dtype: DTypeLike,
  queries: int = 1,
  slots: int = 1,
  pages_per_seq: int = 1,
) -> str | None:
  """Returns why the kernel does not support a shape; None if it does.

  Pages, slots and queries are not restricted.
  """
  del page_size, slots, pages_per_seq
  dtype = jnp.dtype(dtype)
  if dtype not in (jnp.float32, jnp.bfloat16):
    return f"the gpu kernel computes in float32 or bfloat16, not {dtype.name}"
  if heads % kv_heads:
    return f"{heads} query heads are not a multiple of {kv_heads} KV heads"
  *_, shared = tile_plan(heads, kv_heads, head_dim, dtype, queries)
  if shared > SHARED_MOST:
    return (
      f"{heads // kv_heads} query heads of {head_dim} to a KV head take {shared // KIB} KiB of a "
      f"GPU's shared memory in {dtype.name}, more than {SHARED_MOST // KIB}: use another kernel"
    )
  return None


def tile_plan(H: int, K: int, h: int, dtype: DTypeLike, T: int) -> tuple[int, int, int, int, int]:
  """Returns queries per tile, matmul rows, keys per block, warps, bytes of shared memory."""
  G, width = H // K, _padded_head_dim(h)
  item = jnp.dtype(dtype).itemsize
  # TF32 on tensor cores is too inexact, so float32 tiles must fit into registers.
  most, keys = (128, 64) if item == 2 else (32, 32)
  most = max(most * 128 // max(width, 128), ROWS)
  tile = min(max(most // G, 1), T)
  tile = ceil_div(T, ceil_div(T, tile))  # balance the tiles, without changing their number
  R = max(pl.next_power_of_2(tile * G), ROWS)
  warps = 8 if item == 4 or R * max(width, 128) > 64 * 128 else 4

  def shared(block: int) -> int:
    buffered = STAGES - 1  # blocks
    weights = R * block if item == 4 or R < 64 else 0  # otherwise Triton keeps them in registers
    return item * (buffered * 2 * block * width + R * width + weights)

  block = next((b for b in (keys, keys // 2) if shared(b) <= SHARED), 16)
  return tile, R, block, warps, shared(block)


def num_splits(programs: int, R: int, block: int, keys: int) -> int:
  """Splits per row: up to `PROGRAMS` programs, with enough keys per split to outweigh merging."""
  return max(min(PROGRAMS // programs, keys // max(2 * block, 4 * R)), 1)


def _padded_head_dim(h: int) -> int:
  return max(pl.next_power_of_2(h), 16)


def _merge(
  out: Float32[Array, "splits B T H h"], lse: Float32[Array, "splits B T H"]
) -> Float32[Array, "B T H h"]:
  """Merges attention over each split's keys into attention over all keys."""
  weights = jnp.exp2(lse - jnp.max(lse, axis=0))
  weights /= jnp.sum(weights, axis=0)
  return jnp.sum(out * weights[..., None], axis=0)


def _kernel(
  page_ids: Ref,  # int32 [B, pages_per_seq]
  start: Ref,  # int32 [B]
  count: Ref,  # int32 [B]
  q: Ref,  # [B, T, H, h]
  pool: Ref,  # [L * P * page, 2 * K * h]
  out: Ref,  # [splits, B, T, H, h]
  *lse: Ref,  # float32 [splits, B, T, H], base 2, if there is more than one split
  tile: int,
  R: int,
  width: int,
  block: int,
  page: int,
  window: int | None,
  soft_cap: float | None,
) -> None:
  splits, _, T, H, h = out.shape
  G = H * 2 * h // pool.shape[1]
  dot = functools.partial(plgpu.dot, precision=jax.lax.Precision.HIGHEST)  # float32, not tf32
  kv_head, row, split = (pl.program_id(i) for i in range(3))
  tiles = ceil_div(T, tile)
  b, first = jax.lax.div(row, tiles), jax.lax.rem(row, tiles) * tile

  r, lane = jnp.arange(R, dtype=jnp.int32), jnp.arange(width, dtype=jnp.int32)
  query, head = jax.lax.div(r, G), kv_head * G + jax.lax.rem(r, G)
  t = first + query
  exists, inside = (query < tile) & (t < T), (lane < h)[None]
  where = b, t[:, None], head[:, None], lane[None]
  queries = plgpu.load(q.at[where], mask=exists[:, None] & inside, other=0)

  real = jnp.clip(count[b] - first, 0, tile)  # valid queries of this tile
  position = start[b] + first
  begin = 0 if window is None else jnp.maximum(position - window + 1, 0)
  end = position + real
  blocks = jnp.where(real > 0, pl.cdiv(end - begin, block), 0)
  share = pl.cdiv(blocks, splits)

  def step(i: Array, sums: Sums) -> Sums:
    peak, total, acc = sums
    key = begin + i * block + jnp.arange(block, dtype=jnp.int32)
    used = key < end
    ids = plgpu.load(page_ids.at[b, jax.lax.div(key, page)], mask=used, other=0)
    token = (ids * page + jax.lax.rem(key, page))[:, None]

    def fetch(i: int) -> Array:
      # Masked loads must give 0, since 0 * NaN is NaN.
      lanes = (2 * kv_head + i) * h + lane[None]
      return plgpu.load(pool.at[token, lanes], mask=used[:, None] & inside, other=0)

    scores = dot(queries, fetch(0), trans_b=True)
    if soft_cap is None:  # in base 2, as GPUs only have exp2
      scores *= h**-0.5 * LOG2E
    else:
      scores = soft_cap * LOG2E * jnp.tanh(scores * (h**-0.5 / soft_cap))
    behind = (position + query)[:, None] - key[None]
    seen = behind >= 0
    if window is not None:
      seen &= behind < window
    scores = jnp.where(seen, scores, -jnp.inf)
    new_peak = jnp.maximum(peak, jnp.max(scores, axis=1))
    weights = jnp.exp2(scores - new_peak[:, None])
    shrink = jnp.exp2(peak - new_peak)
    total = total * shrink + jnp.sum(weights, axis=1)
    return new_peak, total, acc * shrink[:, None] + dot(weights.astype(pool.dtype), fetch(1))

  peak, total, acc = fori_loop(
    split * share,
    jnp.minimum((split + 1) * share, blocks),
    step,
    (
      jnp.full((R,), -1e30, jnp.float32),
      jnp.zeros((R,), jnp.float32),
      jnp.zeros((R, width), jnp.float32),
    ),
  )
  total = jnp.maximum(total, 1e-30)
  value = jnp.where((query < real)[:, None], acc / total[:, None], 0).astype(out.dtype)
  plgpu.store(out.at[split, *where], value, mask=exists[:, None] & inside)
  if lse:
    plgpu.store(lse[0].at[split, b, t, head], peak + jnp.log2(total), mask=exists)
