"""Derives the program's sizes and kernels from the settings, the mesh and the model."""

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from simpo_jax import distributed
from simpo_jax.arith import round_up
from simpo_jax.data.types import Prompt
from simpo_jax.errors import UserError
from simpo_jax.generate.assignment import round_robin
from simpo_jax.generate.kv_pool_size import Pool
from simpo_jax.generate.requests import make_requests
from simpo_jax.generate.sizing import fit, select_kernel, shape_for
from simpo_jax.generate.types import Assignment, Request
from simpo_jax.kernels import range_attention
from simpo_jax.models.config import ModelConfig
from simpo_jax.models.linear import activation_dtype
from simpo_jax.models.llama import tensors
from simpo_jax.models.lora import Lora, make_lora
from simpo_jax.models.sharding import ROWS, Device, make_mesh, named, param_specs, train_rules
from simpo_jax.program.build import room_for_pool
from simpo_jax.program.config import ProgramConfig
from simpo_jax.settings import (
  GenerateSettings,
  MeshSettings,
  ModelSettings,
  Settings,
  TrainSettings,
)
from simpo_jax.train.batch import batch_shape, row_length
from simpo_jax.train.optimizer import make_optimizer, make_schedule
from simpo_jax.train.types import StepConfig

LANES = 128  # TPU kernels need row lengths that are multiples of it


class Configured(NamedTuple):
  """The program's configuration, with the reasons for the choices made."""

  program: ProgramConfig
  assignments: list[Assignment]  # one per request
  pool: Pool
  attention_note: str | None  # where and why attention does not use the platform's kernel


def program_config(
  settings: Settings, mesh: Mesh, model: ModelConfig, requests: list[Request], stop_states: int
) -> Configured:
  """Chooses the sizes, kernels and KV pool of the program.

  Args:
    requests: empty for a run that never generates.
    stop_states: number of states of the stop automaton.

  Raises:
    UserError: these settings are impossible on these devices; says what to change.
  """
  _check_tensor_parts(mesh, model)
  platform, generation = mesh.devices.flat[0].platform, settings.generate
  step, train_note = _step_config(settings, mesh, model)
  if not requests:
    generation, requests = _smallest_generation(generation)
  groups = mesh.shape["host"] if generation.mode == "host_data_parallel" else 1
  assignments = round_robin(requests, groups, jax.process_count())
  shape = shape_for(requests, assignments, generation, groups, platform, stop_states)
  schedule = make_schedule(settings.train)
  program = ProgramConfig(
    step=step,
    generate=shape,
    mode=generation.mode,
    param_dtype=jnp.dtype(settings.model.param_dtype),
    tx=make_optimizer(settings.train, schedule, model, step.frozen, step.lora),
    schedule=schedule,
    mesh=mesh,
  )
  room = distributed.min_over_hosts("room for the KV pool", room_for_pool(program))
  sizes = fit(shape, requests, generation, model, mesh, program.mode, step.dtype, room)
  notes = (("train", train_note), ("generate", sizes.attention_note))
  return Configured(
    dataclasses.replace(program, generate=sizes.shape),
    assignments,
    sizes.pool,
    "; ".join(f"{what}: {why}" for what, why in notes if why) or None,
  )


def _step_config(
  settings: Settings, mesh: Mesh, model: ModelConfig
) -> tuple[StepConfig, str | None]:
  """The training step's config, and why its attention does not use the platform's kernel."""
  platform = mesh.devices.flat[0].platform
  train, data = settings.train, settings.data
  dtype = compute_dtype(settings.model, platform)
  row, rows = round_up(row_length(data), LANES), _micro_batch_rows(train, mesh)
  lora, window = make_lora(train), longest_window(model, data.max_length)
  attention, note = _training_attention(train.attention, platform, model, row, dtype, window)
  rules = train_rules(settings.mesh.shard_over_hosts)
  step = StepConfig(
    model=model,
    simpo=settings.simpo,
    dtype=dtype,
    activations=activation_dtype(dtype, platform),
    remat=train.remat,
    batch=batch_shape(train.batch_size, row, data.max_pairs_per_row, rows),
    rows=NamedSharding(mesh, ROWS),
    weights=named(mesh, param_specs(model, mesh, rules, lora)),
    frozen=_frozen(train, model, lora),
    lora=lora,
    ema_decay=train.ema_decay,
    attention=attention,
    logits_chunk=min(row, train.logits_chunk or (256 if platform == "cpu" else 1024)),
    windows=None if window is None else tuple(w or row for w in model.windows),
  )
  return step, note


def mesh_of(
  settings: MeshSettings, devices: Sequence[Device] | None = None, hosts: int | None = None
) -> Mesh:
  """Returns the mesh that the settings describe; see `make_mesh`."""
  return make_mesh(devices, hosts, data=settings.data, fsdp=settings.fsdp, tensor=settings.tensor)


def compute_dtype(settings: ModelSettings, platform: str) -> np.dtype:
  """Returns the dtype of matmuls; for "auto", float32 on CPU and bfloat16 elsewhere."""
  dtype = settings.compute_dtype
  if dtype == "auto":
    dtype = "float32" if platform == "cpu" else "bfloat16"
  return jnp.dtype(dtype)


def longest_window(model: ModelConfig, max_length: int) -> int | None:
  """Returns the model's sliding window, or None if no sequence is longer than it."""
  window = model.sliding_window
  return None if window is None or window >= max_length else window


def _check_tensor_parts(mesh: Mesh, model: ModelConfig) -> None:
  parts = mesh.shape["tensor"]
  for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
    if getattr(model, name) % parts:
      raise UserError(
        f"--config.mesh.tensor={parts} must divide the model's "
        f"{name}={getattr(model, name)}; lower it"
      )


def _micro_batch_rows(train: TrainSettings, mesh: Mesh) -> int:
  shards = math.prod(mesh.shape[axis] for axis in ROWS[0])
  rows = train.micro_batch_rows or shards
  if rows % shards:
    raise UserError(
      f"--config.train.micro_batch_rows={rows} must be a multiple of the {shards} "
      "data shards (devices / tensor), or 0 for one row per shard"
    )
  return rows


def _frozen(train: TrainSettings, model: ModelConfig, lora: Lora | None) -> tuple[str, ...]:
  """Top-level keys of the weights that training does not update."""
  if lora:
    return tuple(tensors(model))
  return ("embed", "lm_head") if train.freeze_embeddings else ()


def _training_attention(
  requested: str, platform: str, model: ModelConfig, row: int, dtype: np.dtype, window: int | None
) -> tuple[str, str | None]:
  return select_kernel(
    "train.attention",
    requested,
    range_attention.select_impl,
    platform,
    heads=model.num_attention_heads,
    kv_heads=model.num_key_value_heads,
    head_dim=model.head_dim,
    row_length=row,
    dtype=dtype,
    window=window,
    soft_cap=model.attn_logit_softcapping,
  )


def _smallest_generation(
  generation: GenerateSettings,
) -> tuple[GenerateSettings, list[Request]]:
  """The smallest possible generate branch, for a run that never generates."""
  generation = dataclasses.replace(
    generation,
    max_new_tokens=1,
    num_samples=1,
    num_pages=0,
    repetition_penalty=1.0,
    min_new_tokens=0,
    suppress_tokens=(),
  )
  return generation, make_requests([Prompt(0, "", np.zeros(1, np.int32))], generation)
