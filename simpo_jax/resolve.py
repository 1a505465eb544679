"""From a config to everything a run needs: model, data, prompts, program sizes."""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from simpo_jax import distributed
from simpo_jax.arith import round_up
from simpo_jax.capacity import Pool, pool_size
from simpo_jax.config_check import validate
from simpo_jax.data.load_tokenizer import run_tokenizer
from simpo_jax.data.loading import load_data
from simpo_jax.data.packing import batch_shape
from simpo_jax.data.pairs import PairTokens, row_length
from simpo_jax.data.prompts import Prompt, load_prompts
from simpo_jax.data.skips import SkipReport
from simpo_jax.data.stream import Mixture
from simpo_jax.data.tokenizer import Tokenizer
from simpo_jax.errors import UserError
from simpo_jax.generate import GenerateShape, Requests
from simpo_jax.inference import head_shards, page_bytes
from simpo_jax.kernels import paged_attention, range_attention
from simpo_jax.lora import make_lora
from simpo_jax.loss import SimPOConfig
from simpo_jax.model import tensors
from simpo_jax.model_config import ModelConfig
from simpo_jax.optimizer import make_optimizer, make_schedule
from simpo_jax.program import ProgramConfig, room_for_pool
from simpo_jax.requests import (
  Place,
  Request,
  deal,
  empty_requests,
  generate_shape,
  make_requests,
  pack_requests,
  request_pages,
)
from simpo_jax.schedule import evaluates, generates
from simpo_jax.sharding import ROWS, make_mesh, named, param_specs, train_rules
from simpo_jax.stopping import stop_automaton
from simpo_jax.train import StepConfig
from simpo_jax.weights import OpenModel, open_model

LANES = 128  # rows are multiples of it, as TPU kernels want them


class Run(NamedTuple):
  """All that the run loop works on, resolved and checked; nothing is on a device yet."""

  model: OpenModel
  tokenizer: Tokenizer
  train_pairs: list[PairTokens] | Mixture
  eval_pairs: list[PairTokens]
  skips: dict[str, SkipReport]
  requests: list[Request]
  places: list[Place]  # of the requests
  packed: Requests  # the requests as the program takes them, numpy
  pool: Pool
  attention_note: str | None  # where and why attention is not the platform's own kernel
  program: ProgramConfig
  date: str  # what chat templates take for now, ISO 8601


def resolve(config, mesh: Mesh | None = None, date: str = "") -> Run:
  """Opens and checks all that the config names.

  Args:
    mesh: of described devices, to plan a run on them; None: this run's own devices.
    date: when the run began, for chat templates that print the date; "": now.

  Raises:
    UserError: a field, file, model or prompt that cannot be used, and what to change.
  """
  validate(config)
  model = open_model(config.model.source)
  tokenizer = run_tokenizer(config, date)
  if tokenizer.vocab_size > model.config.vocab_size:
    raise UserError(
      f"the tokenizer of {config.model.source} has {tokenizer.vocab_size} tokens, the model only "
      f"{model.config.vocab_size}; use the tokenizer that belongs to the model"
    )
  train_pairs, eval_pairs, skips = load_data(config, tokenizer, evaluates(config))
  prompts = load_prompts(config.generate, tokenizer) if generates(config) else []
  requests = make_requests(prompts, config.generate)
  _check_context(config, model, requests)
  stops = stops_of(config.generate, model, tokenizer)
  mesh = mesh_of(config) if mesh is None else mesh
  program, pool, note = program_config(config, mesh, model.config, requests, len(stops))
  shape = program.generate
  packed = (
    pack_requests(requests, shape, stops, config.generate.seed)
    if requests
    else empty_requests(shape, model.config.vocab_size)
  )
  places = deal(requests, shape.groups, jax.process_count())
  return Run(
    model=model,
    tokenizer=tokenizer,
    train_pairs=train_pairs,
    eval_pairs=eval_pairs,
    skips=skips,
    requests=requests,
    places=places,
    packed=packed,
    pool=pool,
    attention_note=note,
    program=program,
    date=date,
  )


def stops_of(generate, model: OpenModel, tokenizer: Tokenizer) -> np.ndarray:
  """The stop automaton that `config.generate` asks for."""
  return stop_automaton(
    model.config.vocab_size,
    () if generate.ignore_eos else tokenizer.eos_ids,
    generate.stop,
    tokenizer.token_bytes() if generate.stop else None,
  )


def _check_context(config, model: OpenModel, requests: list[Request]) -> None:
  limit = model.config.max_position_embeddings
  if config.data.max_length > limit:
    raise UserError(
      f"--config.data.max_length={config.data.max_length} exceeds the model's "
      f"context of {limit} tokens; lower it"
    )
  for request in requests:
    length = len(request.prompt.tokens)
    if length + request.budget > limit:
      raise UserError(
        f"prompt {request.prompt.index} has {length} tokens, and with {_budget(request)} exceeds "
        f"the model's context of {limit}; lower the budget or shorten the prompt"
      )


def _budget(request: Request) -> str:
  own = "max_new_tokens" in request.prompt.settings
  return f"{'its own ' if own else '--config.generate.'}max_new_tokens={request.budget}"


def mesh_of(config, devices=None, hosts: int | None = None) -> Mesh:
  """The mesh that `config.mesh` asks for; see `make_mesh`."""
  axes = config.mesh
  return make_mesh(devices, hosts, data=axes.data, fsdp=axes.fsdp, tensor=axes.tensor)


def program_config(
  config, mesh: Mesh, model: ModelConfig, requests: list[Request], stop_states: int
) -> tuple[ProgramConfig, Pool, str | None]:
  """The program's sizes, its KV pool, and why attention is not the platform's own kernel.

  Args:
    requests: may be empty, for a run that never generates.
    stop_states: of the stop automaton.

  Raises:
    UserError: sizes that cannot be had on these devices, and what to change.
  """
  shards = math.prod(mesh.shape[axis] for axis in ROWS[0])
  rows = config.train.micro_batch_rows or shards
  if rows % shards:
    raise UserError(
      f"--config.train.micro_batch_rows={rows} must be a multiple of the {shards} "
      "data shards (devices / tensor), or 0 for one row per shard"
    )
  for name in ("num_attention_heads", "num_key_value_heads", "intermediate_size"):
    if getattr(model, name) % mesh.shape["tensor"]:
      raise UserError(
        f"--config.mesh.tensor={mesh.shape['tensor']} must divide the model's "
        f"{name}={getattr(model, name)}; lower it"
      )
  device = mesh.devices.flat[0]
  on_cpu = device.platform == "cpu"
  dtype = compute_dtype(config, device.platform)
  row = round_up(row_length(config.data), LANES)
  window = model.sliding_window
  if window is not None and window >= config.data.max_length:
    window = None  # no sequence is that long
  windows = None if window is None else tuple(w or row for w in model.windows)
  attention, train_note = _chosen(
    "train.attention",
    config.train.attention,
    range_attention.choose,
    device.platform,
    heads=model.num_attention_heads,
    kv_heads=model.num_key_value_heads,
    head_dim=model.head_dim,
    row_length=row,
    dtype=dtype,
    window=window,
    soft_cap=model.attn_logit_softcapping,
  )
  schedule = make_schedule(config.train)
  lora = make_lora(config.train)
  rules = train_rules(config.mesh.shard_over_hosts)
  frozen = ("embed", "lm_head") if config.train.freeze_embeddings else ()
  if lora:
    frozen = tuple(tensors(model))
  step = StepConfig(
    model=model,
    simpo=SimPOConfig(**config.simpo.to_dict()),
    dtype=dtype,
    remat=config.train.remat,
    pairs=config.train.batch_size,
    slots=config.data.max_pairs_per_row,
    rows=NamedSharding(mesh, ROWS),
    weights=named(mesh, param_specs(model, mesh, rules, lora)),
    frozen=frozen,
    lora=lora,
    ema_decay=config.train.ema_decay,
    attention=attention,
    logits_chunk=min(row, config.train.logits_chunk or (256 if on_cpu else 1024)),
    windows=windows,
  )
  generation = config.generate
  if not requests:
    # A run that never generates keeps a generate branch of the smallest size.
    generation = generation.copy_and_resolve_references()
    generation.update(max_new_tokens=1, num_samples=1, num_pages=0, repetition_penalty=1.0)
    requests = make_requests([Prompt(0, "", np.zeros(1, np.int32))], generation)
  groups = mesh.shape["host"] if generation.mode == "host_data_parallel" else 1
  shape = generate_shape(requests, generation, groups, device.platform, stop_states)
  program = ProgramConfig(
    step=step,
    batch=batch_shape(config.train.batch_size, row, config.data.max_pairs_per_row, rows),
    generate=shape,
    mode=generation.mode,
    param_dtype=jnp.dtype(config.model.param_dtype),
    tx=make_optimizer(config.train, schedule, model, frozen, lora),
    schedule=schedule,
    mesh=mesh,
  )
  pool = pool_size(
    generation.num_pages,
    worst=shape.num_pages,
    largest=max(request_pages(r, shape.page_size) for r in requests),
    page_bytes=page_bytes(model, mesh, program.mode, shape.page_size, step.dtype),
    room=distributed.smallest("room for the KV pool", room_for_pool(program)),
  )
  shape = shape._replace(num_pages=pool.pages)
  attention, decode_note = decode_attention(
    generation.attention, model, mesh, program.mode, shape, step.dtype
  )
  shape = shape._replace(attention=attention)
  notes = [
    f"{what}: {why}" for what, why in (("train", train_note), ("generate", decode_note)) if why
  ]
  return dataclasses.replace(program, generate=shape), pool, "; ".join(notes) or None


def decode_attention(
  asked: str, model: ModelConfig, mesh: Mesh, mode: str, shape: GenerateShape, dtype
) -> tuple[str, str | None]:
  """The implementation of paged attention, checked against the sizes one device has.

  Returns:
    Its name, and why it is not the platform's own kernel.
  """
  parts = head_shards(model, mesh, mode)
  heads, kv_heads = model.num_attention_heads // parts, model.num_key_value_heads // parts
  for slots, queries in ((shape.slots, 1), (shape.prefill_rows, shape.chunk)):
    chosen, note = _chosen(
      "generate.attention",
      asked,
      paged_attention.choose,
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


def compute_dtype(config, platform: str):
  """The dtype of matrix products: the config's, or what suits the platform."""
  dtype = config.model.compute_dtype
  if dtype == "auto":
    dtype = "float32" if platform == "cpu" else "bfloat16"
  return jnp.dtype(dtype)


def _chosen(field: str, asked: str, choose, platform: str, **shape) -> tuple[str, str | None]:
  try:
    return choose(asked, platform, **shape)
  except ValueError as error:
    raise UserError(f"--config.{field}={asked}: {error}; choose another, or auto") from error


def devices_text(mesh) -> str:
  """The mesh in words: "4 x cpu, host 1 x fsdp 4 x tensor 1"."""
  kind = mesh.devices.flat[0].device_kind
  axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
  return f"{mesh.size} x {kind}, {axes}, {jax.process_count()} process(es)"
