"""Chooses the fixed sizes of a generation: slots, prefill chunks, KV pool and kernel."""

from collections.abc import Callable
from typing import Concatenate, NamedTuple, ParamSpec

import numpy as np
from jax.sharding import Mesh

from simpo_jax.arith import ceil_div
from simpo_jax.errors import UserError
from simpo_jax.generate.kv_pages import pages_needed
from simpo_jax.generate.kv_pool_size import Pool, pool_size
from simpo_jax.generate.on_mesh import head_shards, page_bytes
from simpo_jax.generate.sampling.settings import switches_for
from simpo_jax.generate.suppression import suppresses
from simpo_jax.generate.types import Assignment, GenerateShape, Request
from simpo_jax.kernels import paged_attention
from simpo_jax.models.config import ModelConfig
from simpo_jax.settings import GenerateSettings

KernelShape = ParamSpec("KernelShape")


def shape_for(
  requests: list[Request],
  assignments: list[Assignment],
  settings: GenerateSettings,
  groups: int,
  platform: str = "cpu",
  stop_states: int = 1,
) -> GenerateShape:
  """Returns the sizes for these requests, before `fit` limits the pool and selects the kernel.

  The KV pool holds the worst case, and attention is "xla".

  Args:
    assignments: one per request.
    platform: of the devices; determines the batch sizes.
    stop_states: number of states of the stop automaton.
  """
  per_group = 1 + max(a.index for a in assignments)
  slots = min(settings.max_slots or per_group, per_group)
  longest = max(len(r.prompt.tokens) for r in requests)
  on_cpu = platform == "cpu"
  chunk = min(prefill_chunk(settings, platform), longest)
  rows = settings.prefill_rows or max(1, (256 if on_cpu else 512) // chunk)
  return GenerateShape(
    groups=groups,
    requests=per_group,
    slots=slots,
    widths=_widths(slots, on_cpu),
    prompt_tokens=longest,
    max_new_tokens=max(r.budget for r in requests),
    page_size=settings.page_size,
    num_pages=worst_pages(requests, assignments, slots, settings.page_size),
    chunk=chunk,
    prefill_rows=min(rows, slots * ceil_div(longest, chunk)),
    stop_states=stop_states,
    attention="xla",
    shared_prompts=any(r.sample for r in requests),
    repetition_penalty=any(r.sampling.repetition_penalty != 1.0 for r in requests),
    sampling=switches_for(r.sampling for r in requests),
    suppression=suppresses(settings),
  )


class Sizes(NamedTuple):
  """A generation's shape with its pool and kernel, and the reasons for them."""

  shape: GenerateShape
  pool: Pool
  attention_note: str | None  # why attention does not use the platform's kernel


def fit(
  shape: GenerateShape,
  requests: list[Request],
  settings: GenerateSettings,
  model: ModelConfig,
  mesh: Mesh,
  mode: str,
  dtype: np.dtype,
  room: int | None,
) -> Sizes:
  """Limits the KV pool to the available memory and selects the kernel.

  Args:
    shape: from `shape_for`.
    mode: a key of `INFERENCE_RULES`.
    dtype: compute dtype.
    room: bytes available for the pool on one device; None if unknown.

  Raises:
    UserError: the pool cannot hold the largest request (`NoRoom` if for lack of memory), or
      the kernel requested by name does not support these sizes.
  """
  pool = pool_size(
    settings.num_pages,
    worst=shape.num_pages,
    largest=max(request_pages(r, shape.page_size) for r in requests),
    page_bytes=page_bytes(model, mesh, mode, shape.page_size, dtype),
    room=room,
  )
  shape = shape._replace(num_pages=pool.pages)
  attention, note = select_paged_attention(settings.attention, model, mesh, mode, shape, dtype)
  return Sizes(shape._replace(attention=attention), pool, note)


def select_paged_attention(
  requested: str, model: ModelConfig, mesh: Mesh, mode: str, shape: GenerateShape, dtype: np.dtype
) -> tuple[str, str | None]:
  """Selects the paged-attention implementation for the per-device shapes of decode and prefill.

  Returns:
    Its name, and why it is not the platform's kernel (None if it is).

  Raises:
    UserError: the kernel requested by name does not support these shapes.
  """
  parts = head_shards(model, mesh, mode)
  heads, kv_heads = model.num_attention_heads // parts, model.num_key_value_heads // parts
  for slots, queries in ((shape.slots, 1), (shape.prefill_rows, shape.chunk)):
    chosen, note = select_kernel(
      "generate.attention",
      requested,
      paged_attention.select_impl,
      mesh.devices.flat[0].platform,
      heads=heads,
      kv_heads=kv_heads,
      head_dim=model.head_dim,
      page_size=shape.page_size,
      dtype=dtype,
      queries=queries,
      slots=slots,
      pages_per_seq=shape.pages_per_seq,
    )
    if note:
      break
  return chosen, note


def select_kernel(
  field: str,
  requested: str,
  select_impl: Callable[Concatenate[str, str, KernelShape], tuple[str, str | None]],
  platform: str,
  *args: KernelShape.args,
  **shape: KernelShape.kwargs,
) -> tuple[str, str | None]:
  """Calls a kernel package's `select_impl`, and names the config field in its errors.

  Args:
    field: the setting that requests an implementation, for messages.
    requested: the value of that setting.
    select_impl: of `simpo_jax.kernels.paged_attention` or `range_attention`.
    platform: of the devices.
    **shape: the shape arguments of `select_impl`.

  Returns:
    The implementation, and why it is not the platform's kernel (None if it is).

  Raises:
    UserError: the implementation requested in `field` does not support these sizes.
  """
  try:
    return select_impl(requested, platform, *args, **shape)
  except ValueError as error:
    raise UserError(f"--config.{field}={requested}: {error}; choose another, or auto") from error


def prefill_chunk(settings: GenerateSettings, platform: str) -> int:
  """Returns T of a prefill pass: `settings.prefill_chunk`, or the platform's default."""
  return settings.prefill_chunk or (32 if platform == "cpu" else 128)


def request_pages(request: Request, page_size: int) -> int:
  """Returns the KV pages of the request's worst case; its last token is never cached."""
  return pages_needed(len(request.prompt.tokens) + request.budget - 1, page_size)


def worst_pages(
  requests: list[Request], assignments: list[Assignment], slots: int, page_size: int
) -> int:
  """Returns the most pages that a group can ever use: those of its `slots` largest requests."""
  needs: dict[int, list[int]] = {}
  for request, assignment in zip(requests, assignments, strict=True):
    needs.setdefault(assignment.group, []).append(request_pages(request, page_size))
  return max(sum(sorted(group, reverse=True)[:slots]) for group in needs.values())


def _widths(slots: int, on_cpu: bool) -> tuple[int, ...]:
  """Batch sizes of decode steps, so that steps with few running sequences are cheaper.

  On CPU that pays off down to 4 rows; accelerators are bound by reading the weights below 64.
  """
  least, widths = 4 if on_cpu else 64, [slots]
  while widths[-1] // 4 >= least:
    widths.append(widths[-1] // 4)
  return tuple(widths)
