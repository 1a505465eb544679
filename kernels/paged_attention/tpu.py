"""Paged attention for TPU, in Pallas (Mosaic): decoding and prefill chunks.

A row is one sequence or, in long chunks, one tile of its queries; all query heads of a KV head
form the rows of one matmul. Rows are divided into two shares, one for each core of a chip with
two cores. A share processes the blocks of its rows one after the other, with the DMA of the
next block always in flight, also from one row to the next. An online softmax (arXiv:1805.02867)
combines the blocks. Only pages that some query of the row sees are fetched, with all KV heads of
a token at once.

Mosaic slices lanes efficiently only at multiples of 128. If a head's K or V is not aligned, the
matmuls use the full lane tiles that cover it: q is zero-padded at the other lanes, and the other
lanes of the result are dropped.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int32

from simpo_jax.arith import ceil_div, round_up
from simpo_jax.kernels.paged_attention.refs import Ref

LANES = 128
MIB = 2**20
BLOCK_BYTES = 1 * MIB  # keys and values: large for efficient DMAs, small for a short first wait
BLOCK_KEYS = (256, 1024)  # minimum and maximum keys of a block
TILE = 512  # matmul rows of a tile of queries, which share one read of K and V
TILE_HEADS = 8  # with more KV heads, tiles have fewer rows, so that their state fits into VMEM
SCORES = 512 * 512  # maximum scores per KV head at a time
SMEM = 960 * 2**10
VMEM = 48 * MIB
SPILL = {2: 6 * MIB, 4: 12 * MIB}  # by item size; compilers used up to 3 and 9 MiB extra

Index = int | Array  # static or traced
Covers = tuple[tuple[int, int], ...]  # for each KV head, the lanes (begin, end) that cover it


def attend(
  q: Float[Array, "B T H h"],
  pool: Float[Array, "pages page lanes"],
  page_ids: Int32[Array, "B pages_per_seq"],
  start: Int32[Array, " B"],
  count: Int32[Array, " B"],
  *,
  window: int | None = None,
  soft_cap: float | None = None,
  interpret: bool | pltpu.InterpretParams = False,
) -> Float[Array, "B T H h"]:
  """See `simpo_jax.kernels.paged_attention.paged_prefill`.

  `interpret` is passed to `pl.pallas_call`; `pltpu.InterpretParams()` runs the kernel on CPU.
  """
  B, T, H, h = q.shape
  page, lanes = pool.shape[1:]
  n = page_ids.shape[1]
  K = lanes // (2 * h)
  G = H // K
  tiles, tile, pages, vmem = _plan(H, K, h, page, q.dtype, T, n)
  rows, R = B * tiles, tile * G
  keys, values = _covers(K, h)

  q = jnp.pad(q, ((0, 0), (0, tiles * tile - T), (0, 0), (0, 0)))
  q = q.reshape(rows, tile, K, G, h).swapaxes(1, 2).reshape(rows, K, R, h)
  q = _spread(q, [2 * k * h - begin for k, (begin, _) in enumerate(keys)], _widest(keys))
  first = jnp.arange(tiles, dtype=jnp.int32) * tile  # first query of each tile
  start = (start[:, None] + first).reshape(rows)
  count = jnp.clip(count[:, None] - first, 0, tile).reshape(rows)

  shares = min(2, rows)

  def block(share: Array, i: Array, *_: Ref) -> tuple[Index, ...]:
    # If one share is shorter, its last step revisits its last row without changing it.
    last = jax.lax.div(rows - 1 - share, shares)
    return jnp.minimum(i, last) * shares + share, 0, 0, 0

  kernel = functools.partial(
    _kernel,
    shares=shares,
    tiles=tiles,
    G=G,
    keys=keys,
    values=values,
    scale=h**-0.5,
    window=window,
    soft_cap=soft_cap,
  )
  out = pl.pallas_call(
    kernel,
    out_shape=jax.ShapeDtypeStruct((rows, K, R, h), q.dtype),
    grid_spec=pltpu.PrefetchScalarGridSpec(
      num_scalar_prefetch=3,
      grid=(shares, ceil_div(rows, shares)),
      in_specs=[
        pl.BlockSpec((1, *q.shape[1:]), block),
        pl.BlockSpec(memory_space=pl.ANY),
      ],
      out_specs=pl.BlockSpec((1, K, R, h), block),
      scratch_shapes=[
        pltpu.VMEM((2, pages * page, lanes), pool.dtype),
        pltpu.VMEM((K, R, 1), jnp.float32),
        pltpu.VMEM((K, R, 1), jnp.float32),
        pltpu.VMEM((K, R, _widest(values)), jnp.float32),
        pltpu.SMEM((1,), jnp.int32),
        pltpu.SemaphoreType.DMA((2,)),
      ],
    ),
    compiler_params=pltpu.CompilerParams(
      dimension_semantics=("parallel", "arbitrary"), vmem_limit_bytes=vmem
    ),
    name="paged_attention",
    interpret=interpret,
  )(page_ids.reshape(-1), start, count, q, pool)  # flat, since SMEM pads the last of two axes
  out = out.reshape(rows, K, tile, G, h).swapaxes(1, 2)
  return out.reshape(B, tiles * tile, H, h)[:, :T]


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

  Supported shapes compile for v5e, v5p and v6e.
  """
  dtype = jnp.dtype(dtype)
  if dtype not in (jnp.float32, jnp.bfloat16):
    return f"the tpu kernel computes in float32 or bfloat16, not {dtype.name}"
  if heads % kv_heads:
    return f"{heads} query heads are not a multiple of {kv_heads} KV heads"
  sublanes = 32 // dtype.itemsize
  if page_size % sublanes:
    return (
      f"the tpu kernel needs pages of a multiple of {sublanes} tokens in {dtype.name}, "
      f"not {page_size}"
    )
  tiles, *_, vmem = _plan(heads, kv_heads, head_dim, page_size, dtype, queries, pages_per_seq)
  smem = 4 * slots * (pages_per_seq + 2 * tiles)
  if smem > SMEM:
    return (
      f"the page table of {slots} sequences of {pages_per_seq} pages takes {smem // 1024} KiB "
      f"of a TPU core's scalar memory, more than {SMEM // 1024}: use larger pages or fewer slots"
    )
  if vmem > VMEM:
    return (
      f"{kv_heads} KV heads of {head_dim} in pages of {page_size} tokens take {vmem // MIB} MiB of "
      f"a TPU core's vector memory, more than {VMEM // MIB}: shard the heads or use smaller pages"
    )
  return None


def _plan(
  H: int, K: int, h: int, page: int, dtype: DTypeLike, T: int, n: int
) -> tuple[int, int, int, int]:
  """Returns tiles of queries, queries per tile, pages per block, bytes of VMEM to request."""
  G = H // K
  rows = TILE * TILE_HEADS // max(K, TILE_HEADS)
  tiles = ceil_div(T * G, max(rows, G))
  tile = ceil_div(T, tiles)
  item = jnp.dtype(dtype).itemsize
  lanes = round_up(2 * K * h, LANES)
  fewest, most = BLOCK_KEYS
  block = min(max(BLOCK_BYTES // (lanes * item), fewest), most, max(SCORES // (tile * G), LANES))
  pages = min(max(block // page, 1), n)
  keys, values = (round_up(_widest(x), LANES) for x in _covers(K, h))
  R = round_up(tile * G, 32 // item)
  blocks = 2 * pages * page * lanes * item
  operands = 2 * K * R * (keys + round_up(h, LANES)) * item
  state = K * R * (2 * LANES + values) * 4
  scores = R * round_up(pages * page, LANES) * 4
  return tiles, tile, pages, blocks + operands + state + scores + SPILL[item]


def _covers(K: int, h: int) -> tuple[Covers, Covers]:
  """Returns the lanes that cover each KV head's K, and its V."""

  def covers(i: int) -> Covers:
    lanes = [(2 * k + i) * h for k in range(K)]
    return tuple((x // LANES * LANES, min(round_up(x + h, LANES), 2 * K * h)) for x in lanes)

  return covers(0), covers(1)


def _widest(covers: Covers) -> int:
  return max(end - begin for begin, end in covers)


def _spread(
  q: Float[Array, "rows K R h"], offsets: list[int], width: int
) -> Float[Array, "rows K R lanes"]:
  """Aligns each KV head's queries, `q[:, k]`, with its keys inside their covering lanes."""
  h = q.shape[-1]

  def pad(x: Array, offset: int) -> Array:
    return jnp.pad(x, (*((0, 0),) * (x.ndim - 1), (offset, width - offset - h)))

  if len(set(offsets)) == 1:
    return pad(q, offsets[0])
  return jnp.stack([pad(q[:, k], offset) for k, offset in enumerate(offsets)], axis=1)


def _kernel(
  page_ids: Ref,  # SMEM int32 [B * pages_per_seq]
  start: Ref,  # SMEM int32 [rows]
  count: Ref,  # SMEM int32 [rows]
  q: Ref,  # VMEM [1, K, R, lanes of the widest K cover], R = queries * G, G innermost
  pool: Ref,  # HBM [L * P, page, 2 * K * h]
  out: Ref,  # VMEM [1, K, R, h]
  buffer: Ref,  # VMEM [2, block, 2 * K * h]
  peak: Ref,  # VMEM float32 [K, R, 1], the largest score so far
  total: Ref,  # VMEM float32 [K, R, 1], the sum of weights so far
  acc: Ref,  # VMEM float32 [K, R, lanes of the widest V cover]
  turn: Ref,  # SMEM int32 [1], the buffer that the next block is copied to
  arrived: Ref,  # DMA semaphores [2]
  *,
  shares: int,
  tiles: int,
  G: int,
  keys: Covers,
  values: Covers,
  scale: float,
  window: int | None,
  soft_cap: float | None,
) -> None:
  rows, page = count.shape[0], pool.shape[1]
  n = page_ids.shape[0] * tiles // rows
  block = buffer.shape[1]
  pages = block // page
  K, R, h = out.shape[1:]
  precision = jax.lax.Precision.HIGHEST if pool.dtype == jnp.float32 else None
  div = jax.lax.div  # for nonnegative numbers: cheaper than //, and traces without a device
  share, i = pl.program_id(0), pl.program_id(1)
  row = i * shares + share

  def live_from(row: Array) -> Array:
    def dead(row: Array) -> Array:
      return (row < rows) & (count[jnp.minimum(row, rows - 1)] == 0)

    return jax.lax.while_loop(dead, lambda row: row + shares, row)

  def first_page(row: Array) -> Index:
    return 0 if window is None else div(jnp.maximum(start[row] - window + 1, 0), page)

  def page_end(row: Array) -> Array:
    return div(start[row] + count[row] + page - 1, page)

  def place(i: Index, size: Index = 1) -> pl.Slice | slice:
    start = pl.multiple_of(i * page, page)  # pyright: ignore[reportArgumentType]  # accepts ints
    return pl.ds(start, size * page)

  def fetch(row: Array, begin: Index, slot: Index) -> None:
    entry = div(row, tiles) * n + begin

    def copy(i: Array, _: None) -> None:
      source, target = pool.at[page_ids[entry + i]], buffer.at[slot, place(i)]
      pltpu.make_async_copy(source, target, arrived.at[slot]).start()

    jax.lax.fori_loop(0, jnp.minimum(pages, page_end(row) - begin), copy, None)

  @pl.when(i == 0)
  def _() -> None:
    # Keys beyond the fetched pages have weight 0, so the rest of a buffer must be finite.
    buffer[...] = jnp.zeros_like(buffer)
    turn[0] = 0
    row = live_from(share)

    @pl.when(row < rows)
    def _() -> None:
      fetch(row, first_page(row), 0)

  valid_row = jnp.minimum(row, rows - 1)

  @pl.when((row < rows) & (count[valid_row] == 0))
  def _() -> None:
    out[...] = jnp.zeros_like(out)

  @pl.when((row < rows) & (count[valid_row] > 0))
  def _() -> None:
    begin, end = first_page(row), page_end(row)
    after = live_from(row + shares)
    query = jax.lax.broadcasted_iota(jnp.int32, (R, 1), 0)  # query index * G + head
    peak[...] = jnp.full_like(peak, -1e30)
    total[...] = jnp.zeros_like(total)
    acc[...] = jnp.zeros_like(acc)

    def step(i: Array, _: None) -> None:
      here = begin + i * pages
      slot = turn[0]
      turn[0] = 1 - slot
      last = here + pages >= end

      @pl.when(jnp.logical_not(last))
      def _() -> None:
        fetch(row, here + pages, 1 - slot)

      @pl.when(last & (after < rows))
      def _() -> None:
        fetch(after, first_page(after), 1 - slot)

      landed = buffer.at[slot, place(0, jnp.minimum(pages, end - here))]
      pltpu.make_async_copy(landed, landed, arrived.at[slot]).wait()  # for all bytes of its pages

      valid = start[row] + count[row] - (end - 1) * page  # tokens of the row's last page

      @pl.when(last & (valid < page))
      def _() -> None:
        tail = buffer[slot, place(end - 1 - here)]
        token = jax.lax.broadcasted_iota(jnp.int32, tail.shape, 0)
        buffer[slot, place(end - 1 - here)] = jnp.where(token < valid, tail, 0)

      key = here * page - start[row] + jax.lax.broadcasted_iota(jnp.int32, (1, block), 1)
      seen = key * G <= query  # key <= query // G, without the division
      if window is not None:
        seen &= (key + window) * G > query
      for k in range(K):
        lanes = slice(*keys[k])
        scores = scale * jax.lax.dot_general(
          q[0, k, :, : lanes.stop - lanes.start],
          buffer[slot, :, lanes],
          (((1,), (1,)), ((), ())),
          precision=precision,
          preferred_element_type=jnp.float32,
        )
        if soft_cap is not None:
          scores = soft_cap * jnp.tanh(scores / soft_cap)
        scores = jnp.where(seen, scores, -jnp.inf)
        new_peak = jnp.maximum(peak[k], jnp.max(scores, axis=1, keepdims=True))
        weights = jnp.exp(scores - new_peak)
        shrink = jnp.exp(peak[k] - new_peak)
        peak[k] = new_peak
        total[k] = total[k] * shrink + jnp.sum(weights, axis=1, keepdims=True)
        lanes = slice(*values[k])
        width = lanes.stop - lanes.start
        part = jnp.dot(
          weights.astype(buffer.dtype),
          buffer[slot, :, lanes],
          precision=precision,
          preferred_element_type=jnp.float32,
        )
        acc[k, :, :width] = acc[k, :, :width] * shrink + part

    jax.lax.fori_loop(0, div(end - begin + pages - 1, pages), step, None)
    for k in range(K):
      lane = (2 * k + 1) * h - values[k][0]
      value = acc[k, :, lane : lane + h] / total[k]
      out[0, k] = jnp.where(query < count[row] * G, value, 0).astype(out.dtype)
