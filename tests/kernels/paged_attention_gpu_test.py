"""The Triton kernel of paged attention: its numbers in interpret mode, and that it lowers."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import triton as plgpu

from simpo_jax.kernels.paged_attention import gpu, reference, select_impl, unsupported_reason
from support.tiers import sweep

F32, BF16 = jnp.float32, jnp.bfloat16
ROUNDING = 2.0**-8  # most that rounding to bfloat16 changes a number, relative to it
MODELS = {  # query heads, KV heads, head_dim, options
  "llama-3-8b": (32, 8, 128, {}),
  "smollm2-135m": (9, 3, 64, {}),
  "qwen2.5-0.5b": (14, 2, 64, {}),
  "qwen2.5-7b": (28, 4, 128, {}),
  "gemma-2-9b": (16, 8, 256, {"window": 4096, "soft_cap": 50.0}),
  "head_dim 80": (32, 32, 80, {}),
  "head_dim 96": (32, 32, 96, {}),
}


def _case(ends, H, K, h, page, T=1, dtype=F32, counts=None, window=None, spare=1, seed=0):
  """Sequences of `ends` tokens scattered over a pool, `T` queries at the end of each.

  Whatever no query sees is NaN; table entries past a sequence's end name no page.
  """
  rng = np.random.default_rng(seed)
  B = len(ends)
  n = -(-max(ends) // page) + spare
  pages = B * n + 3
  pool = rng.normal(size=(pages, page, 2 * K * h)).astype(np.float32)
  page_ids = rng.permutation(pages)[: B * n].reshape(B, n).astype(np.int32)
  count = np.asarray([min(end, T) for end in ends] if counts is None else counts, np.int32)
  start = np.asarray(ends, np.int32) - count
  written = np.zeros((pages, page), bool)
  for b, end in enumerate(ends):
    first = 0 if window is None else max(start[b] - window + 1, 0)
    for s in range(first, end if count[b] else 0):
      written[page_ids[b, s // page], s % page] = True
    page_ids[b, -(-end // page) :] = (pages, 2**31 - 1, -1)[b % 3]
  pool[~written] = np.nan
  q = rng.normal(size=(B, T, H, h)).astype(np.float32)
  return q.astype(dtype), pool.astype(dtype), page_ids, start, count


def _jit(f, **options):
  # Compiling is most of what these tests cost.
  quick = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
  return jax.jit(lambda *a: f(*a, **options), compiler_options=quick)


def _check(case, **options):
  """Compares with the oracle, given the same inputs in float32.

  In bfloat16 the kernel rounds each weight once, and the result once; so it is off by no
  more than a rounding of the mean of |v| and one of the mean of v.
  """
  q, pool, page_ids, start, count = case
  out = _jit(gpu.attend, interpret=True, **options)(*case)
  assert out.dtype == q.dtype
  oracle = _jit(reference.attend, **options)
  q, pool = q.astype(F32), pool.astype(F32)
  expected = np.asarray(oracle(q, pool, page_ids, start, count))
  bound = np.full_like(expected, 1e-5)
  if out.dtype == BF16:
    kv = pool.reshape(*pool.shape[:2], -1, 2, q.shape[3])
    sizes = np.stack([kv[:, :, :, 0], np.abs(kv[:, :, :, 1])], 3).reshape(pool.shape)
    mean = np.asarray(oracle(q, sizes, page_ids, start, count))
    bound += ROUNDING * (mean + np.abs(expected))
  out = np.asarray(out, np.float32)
  assert np.all(np.abs(out - expected) <= bound), np.nanmax(np.abs(out - expected) / bound)
  missing = np.arange(q.shape[1]) >= count[:, None]
  assert np.all(out[missing] == 0)
  return out


def _ragged(page):
  return [0, 1, page - 1, page, page + 1, 3 * page, 2 * page + 3, 0, 5 * page - 1, 2]


@pytest.mark.parametrize("dtype", (F32, BF16), ids=("f32", "bf16"))
@sweep(
  "H,K,h,page",
  (
    (2, 2, 64, 8),
    (3, 1, 64, 16),
    (9, 3, 80, 8),
    (8, 2, 96, 16),
    (8, 1, 128, 64),
    (16, 1, 64, 12),
    (4, 2, 256, 16),
    (4, 1, 64, 128),
    (3, 3, 16, 256),
  ),
  default=2,
)
def test_decode(H, K, h, page, dtype):
  _check(_case(_ragged(page), H, K, h, page, dtype=dtype))


@pytest.mark.parametrize("dtype", (F32, BF16), ids=("f32", "bf16"))
@sweep(
  "options",
  ({}, {"window": 5}, {"window": 150}, {"soft_cap": 2.0}, {"window": 70, "soft_cap": 1.0}),
  ids=str,
  default=2,
)
def test_decode_with_split_keys(options, dtype):
  H, K, h, page = 4, 2, 32, 16
  ends = [0, 1, 33, 500, 128, 129]
  n = -(-500 // page) + 1
  _, R, block, *_ = gpu.tile_plan(H, K, h, dtype, 1)
  assert gpu.num_splits(len(ends) * K, R, block, n * page) > 2
  case = _case(ends, H, K, h, page, dtype=dtype, window=options.get("window"))
  _check(case, **options)


@sweep("splits", (1, 2, 3, 7, 40), default=2)
def test_any_number_of_splits(monkeypatch, splits):
  monkeypatch.setattr(gpu, "num_splits", lambda *_: splits)
  _check(_case([0, 1, 31, 32, 33, 64, 65, 200], 4, 2, 32, 8))
  _check(_case([0, 70, 200], 4, 2, 32, 8, T=5, counts=[0, 5, 2], window=40), window=40)


@pytest.mark.parametrize("dtype", (F32, BF16), ids=("f32", "bf16"))
@sweep(
  "H,K,h,page,T,options",
  (
    (8, 2, 64, 16, 50, {}),  # several tiles
    (3, 1, 80, 8, 45, {"window": 20}),  # a tile that fills no power of two
    (14, 2, 64, 16, 7, {"soft_cap": 3.0}),
    (16, 1, 128, 32, 20, {"window": 33, "soft_cap": 3.0}),
    (4, 4, 256, 64, 9, {}),
  ),
  default=2,
)
def test_prefill(H, K, h, page, T, options, dtype):
  ends = [0, 1, T, T + 1, 3 * page, 2 * page + T, 40, T + 7]
  counts = [0, 1, T, T, T - 1, T // 2, 0, 1]
  window = options.get("window")
  _check(_case(ends, H, K, h, page, T, dtype, counts, window), **options)


def test_prefill_has_several_tiles_and_splits():
  H, K, h, page, T = 8, 2, 32, 16, 70
  tile, R, block, *_ = gpu.tile_plan(H, K, h, F32, T)
  tiles = -(-T // tile)
  assert tiles > 2 and T % tile
  assert gpu.num_splits(2 * tiles * K, R, block, 20 * page) > 1
  _check(_case([300, 123], H, K, h, page, T, counts=[70, 41]))


def test_decode_continues_prefill():
  q, pool, page_ids, start, count = _case([90], 4, 2, 32, 16, T=40)
  prefill = _check((q, pool, page_ids, start, count))
  t = np.asarray([0, 17, 39], np.int32)
  decode = _check((q[0, t, None], pool, page_ids[[0, 0, 0]], start + t, np.ones(3, np.int32)))
  np.testing.assert_allclose(decode[:, 0], prefill[0, t], atol=1e-6, rtol=0)


def test_sequences_may_share_pages():
  q, pool, page_ids, start, count = _case([48, 48, 48], 4, 2, 32, 8)
  page_ids[1:] = page_ids[0]
  page_ids[2, 4:] = 10**6
  _check((q, pool, page_ids, np.asarray([47, 20, 31], np.int32), count))


def test_one_token_gets_its_own_value_and_equal_keys_the_mean():
  h, page = 16, 8
  pool = np.full((4, page, 2 * h), np.nan, np.float32)
  pool[2, :3, :h] = 1.0
  pool[2, :3, h:] = np.asarray([1.0, 2.0, 6.0])[:, None]
  q = np.ones((2, 1, 1, h), np.float32)
  page_ids = np.asarray([[2], [2]], np.int32)
  out = _check((q, pool, page_ids, np.asarray([0, 2]), np.asarray([1, 1])))
  np.testing.assert_allclose(out[:, 0, 0, 0], [1.0, 3.0], rtol=1e-6)


@sweep("T,window,splits", ((1, None, 1), (1, 9, 2), (30, None, 2), (30, 9, 1)), default=2)
def test_loads_only_what_exists(monkeypatch, T, window, splits):
  """What spoils the result: an address out of bounds, NaN, and a block of no keys at all."""
  load, loads = plgpu.load, []

  def checked(ref, *, mask, other):
    [indexer] = ref.transforms
    bad = jnp.broadcast_to(~jnp.any(mask), mask.shape)
    for index, size in zip(indexer.indices, ref.ref.shape, strict=True):
      bad |= mask & ((index < 0) | (index >= size))
    value = load(ref, mask=mask, other=other)
    loads.append(ref.ref.shape)
    poison = jnp.iinfo(jnp.int32).max if value.dtype == jnp.int32 else jnp.nan
    spoilt = jnp.any(bad) | jnp.any(jnp.isnan(value))
    return jnp.where(spoilt, jnp.asarray(poison, value.dtype), value)

  monkeypatch.setattr(plgpu, "load", checked)
  monkeypatch.setattr(gpu, "num_splits", lambda *_: splits)
  ends = [0, 1, 7, 8, 9, 40, 64, 65]
  _check(_case(ends, 6, 2, 24, 8, T=T, window=window), window=window)
  assert len(set(loads)) == 3  # queries, table, pool


@pytest.mark.parametrize("splits", (1, 3))
def test_writes_each_result_once(monkeypatch, splits):
  """Programs run in any order on a GPU. What is not yet written is NaN in interpret mode."""
  store = plgpu.store

  def checked(ref, value, *, mask):
    fresh = jnp.isnan(plgpu.load(ref, mask=mask, other=jnp.nan))
    store(ref, jnp.where(fresh, value, 1e9), mask=mask)

  monkeypatch.setattr(plgpu, "store", checked)
  monkeypatch.setattr(gpu, "num_splits", lambda *_: splits)
  _check(_case([0, 9, 100], 6, 2, 24, 8, T=40, counts=[0, 9, 38]))


def _lowered(H, K, h, page, B, T, dtype, pages=64, n=16, **options):
  shapes = ((B, T, H, h), dtype), ((pages, page, 2 * K * h), dtype), ((B, n), jnp.int32)
  shapes += (((B,), jnp.int32),) * 2
  f = jax.jit(lambda *a: gpu.attend(*a, **options))
  with _h100():
    traced = f.trace(*(jax.ShapeDtypeStruct(*s) for s in shapes))
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def _h100():
  # Without a GPU jax 0.10 lowers for an H100 of itself; jax 0.11 wants to be told.
  if not hasattr(plgpu, "get_gpu_info"):
    return contextlib.nullcontext()
  device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=132, platform="gpu")
  return jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=device))


@pytest.mark.parametrize("dtype", (F32, BF16), ids=("f32", "bf16"))
@pytest.mark.parametrize("T", (1, 256), ids=("decode", "prefill"))
@sweep("model", MODELS)
def test_lowers_for_cuda(model, T, dtype):
  H, K, h, options = MODELS[model]
  text = _lowered(H, K, h, 128, 8, T, dtype, **options)
  target = getattr(plgpu, "CUSTOM_CALL_TARGET_NAME", "__gpu$xla.gpu.triton")
  assert text.count(target) == 1


@sweep("page", (8, 16, 64, 128, 256))
def test_lowers_for_cuda_with_any_page_and_a_pool_of_more_than_4_gib(page):
  assert "triton" in _lowered(32, 8, 128, page, 64, 1, BF16, pages=2**21 // page)


def test_float32_is_not_computed_in_tf32(monkeypatch):
  """Triton's own default for float32 is tf32: what the kernel's dots ask for must be ieee."""
  precisions = []
  dot = plgpu.dot

  def recorded(*args, precision=None, **kwargs):
    precisions.append(precision)
    return dot(*args, precision=precision, **kwargs)

  monkeypatch.setattr(plgpu, "dot", recorded)
  _lowered(4, 2, 64, 16, 2, 1, F32)
  assert precisions == [jax.lax.Precision.HIGHEST] * 2


def _shape(H, K, h, dtype=BF16, **rest):
  return {"heads": H, "kv_heads": K, "head_dim": h, "page_size": 16, "dtype": dtype, **rest}


@pytest.mark.parametrize("dtype", (F32, BF16), ids=("f32", "bf16"))
@pytest.mark.parametrize("T", (1, 256), ids=("decode", "prefill"))
@pytest.mark.parametrize("model", MODELS)
def test_common_models_are_taken_and_fit_a_small_gpu(model, T, dtype):
  H, K, h, _ = MODELS[model]
  shape = _shape(H, K, h, dtype, queries=T, slots=256, pages_per_seq=64)
  assert gpu.unsupported_reason(**shape) is None
  assert select_impl("auto", "gpu", **shape) == ("gpu", None)
  *_, shared = gpu.tile_plan(H, K, h, dtype, T)
  assert shared <= 99 * 2**10


@pytest.mark.parametrize(
  "shape,reason",
  (
    (_shape(8, 2, 64, jnp.float16), "computes in float32 or bfloat16, not float16"),
    (_shape(9, 2, 64), "9 query heads are not a multiple of 2 KV heads"),
    (_shape(16, 2, 1024, F32), "8 query heads of 1024 to a KV head take 321 KiB of a GPU's shared"),
  ),
  ids=("dtype", "heads", "memory"),
)
def test_refusal_says_why(shape, reason):
  assert reason in gpu.unsupported_reason(**shape)
  with pytest.raises(ValueError, match=reason):
    select_impl("gpu", "gpu", **shape)
  assert select_impl("auto", "gpu", **shape) == ("xla", gpu.unsupported_reason(**shape))
  elsewhere = unsupported_reason("gpu", "cpu", **shape)
  assert elsewhere and "does not run on cpu" in elsewhere


@pytest.mark.parametrize("R", (16, 128))  # rows of a tile
@pytest.mark.parametrize("programs", (1, 8, 64, 132, 1024))
def test_splits_fill_the_gpu_and_no_more(programs, R):
  """Up to eight programs for each of an H100's multiprocessors; every part has keys to read."""
  block, room, lengths = 64, 8 * 132, (8, 512, 2048, 2**20)
  found = [gpu.num_splits(programs, R, block, keys) for keys in lengths]
  assert found == sorted(found) and found[0] == 1
  assert all(n == 1 or programs * n <= room for n in found)
  assert (found[-1] + 1) * programs > room, "of many keys as many parts as there is room for"
  assert all(n == 1 or keys // n >= 2 * block for n, keys in zip(found, lengths, strict=True))
