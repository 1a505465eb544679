"""Benchmarks a decode step of paged attention against memory bandwidth and a dense version.

  python bench/paged_attention.py [--impl=auto] [--batch=16,128] [--context=256,2048]

docs/performance.md has no figures of it: it covers no machine with a Pallas kernel yet.

The pool has several layers, and a run attends to each of them, with one call's output added
to the next one's queries, so that no cache holds what the next call reads. Page ids are
shuffled; `--ragged` draws lengths uniformly from 1 to the context. `floor_us` is the time to
read each sequence's keys and values once at the bandwidth measured in the same run;
`dense_us` is the `reference` implementation, which gathers every page.
"""

import common
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from simpo_jax.arith import ceil_div
from simpo_jax.kernels.paged_attention import IMPLEMENTATIONS, paged_attention, select_impl

_IMPL = flags.DEFINE_enum("impl", "auto", IMPLEMENTATIONS, "implementation")
_BATCH = flags.DEFINE_list("batch", ["16", "128"], "sequences")
_CONTEXT = flags.DEFINE_list("context", ["256", "2048"], "tokens in the cache")
_RAGGED = flags.DEFINE_bool("ragged", False, "draw lengths from 1 to the context")
_HEADS = flags.DEFINE_integer("heads", 32, "query heads")
_KV_HEADS = flags.DEFINE_integer("kv_heads", 8, "key and value heads")
_HEAD_DIM = flags.DEFINE_integer("head_dim", 128, "size of a head")
_PAGE = flags.DEFINE_integer("page_size", 0, "tokens per page; 0: 64 on CPU, else 128")
_DTYPE = flags.DEFINE_string(
  "dtype", None, "float32 or bfloat16; default: float32 on CPU, else bfloat16"
)
_LAYERS = flags.DEFINE_integer("layers", 4, "layers of the pool")


def main(_: list[str]) -> None:
  """Runs every batch with every context and prints the table."""
  bandwidth = common.read_bandwidth()
  rows = [_case(int(b), int(s), bandwidth) for b in _BATCH.value for s in _CONTEXT.value]
  first = rows[0]
  result = common.result(
    f"paged attention, {first['case']}",
    "microseconds",
    rows,
    ours=first["ours_us"],
    theirs=first["dense_us"],
    peer="the reference implementation, which gathers every page",
    floor=first["floor_us"],
    smaller_is_better=True,
  )
  common.report(f"paged attention, {bandwidth / 1e9:.0f} GB/s", result)


def _case(B: int, S: int, bandwidth: float) -> dict:
  platform = jax.default_backend()
  dtype = jnp.dtype(_DTYPE.value or ("float32" if platform == "cpu" else "bfloat16"))
  page = _PAGE.value or (64 if platform == "cpu" else 128)
  H, K, h = _HEADS.value, _KV_HEADS.value, _HEAD_DIM.value
  n = ceil_div(S, page)
  rng = np.random.default_rng(0)
  lengths = rng.integers(1, S + 1, B) if _RAGGED.value else np.full(B, S)
  P = B * n
  ids = rng.permutation(P).reshape(B, n).astype(np.int32)
  impl, note = select_impl(
    _IMPL.value,
    platform,
    heads=H,
    kv_heads=K,
    head_dim=h,
    page_size=page,
    dtype=dtype,
    queries=1,
    slots=B,
    pages_per_seq=n,
  )
  if note:
    print(note)
  key = jax.random.key(0)
  pool = jax.jit(
    lambda: jax.random.normal(key, (_LAYERS.value * P, page, 2 * K * h), jnp.float32).astype(dtype)
  )()
  q = jax.random.normal(key, (B, H, h), dtype)
  ids, lengths = jnp.asarray(ids), jnp.asarray(lengths, jnp.int32)

  def microseconds(impl: str) -> float:
    @jax.jit
    def run(q: jax.Array, pool: jax.Array, ids: jax.Array, lengths: jax.Array) -> jax.Array:
      def layer(i: jax.Array, x: jax.Array) -> jax.Array:
        return q + paged_attention(x, pool, ids + i * P, lengths, impl=impl)

      return jax.lax.fori_loop(0, _LAYERS.value, layer, q)

    return common.seconds(run, q, pool, ids, lengths) / _LAYERS.value * 1e6

  ours, dense = microseconds(impl), microseconds("reference")
  floor = float(jnp.sum(lengths)) * 2 * K * h * dtype.itemsize / bandwidth * 1e6
  return {
    "case": f"{B} x {'1..' if _RAGGED.value else ''}{S}",
    "impl": impl,
    "dtype": dtype.name,
    "ours_us": ours,
    "dense_us": dense,
    "speedup": dense / ours,
    "floor_us": floor,
    "of_floor": floor / ours,
  }


if __name__ == "__main__":
  app.run(common.with_user_errors(main))
