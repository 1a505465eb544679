"""From a config to everything a run needs: model, data, prompts, program sizes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from simpo_jax.arith import round_up
from simpo_jax.config import validate
from simpo_jax.data.packing import batch_shape
from simpo_jax.data.pairs import PairTokens, SkipReport, load_pairs, row_length, split_pairs
from simpo_jax.data.prompts import Prompt, load_prompts
from simpo_jax.data.tokenizer import Tokenizer, load_tokenizer
from simpo_jax.errors import UserError
from simpo_jax.loss import SimPOConfig
from simpo_jax.optimizer import make_optimizer, make_schedule
from simpo_jax.program import ProgramConfig
from simpo_jax.requests import MAX_STOP_IDS, Request, generate_shape, make_requests
from simpo_jax.schedule import evaluates, generates
from simpo_jax.sharding import ROWS, TRAIN_RULES, make_mesh, named, param_specs
from simpo_jax.train import StepConfig
from simpo_jax.weights import OpenModel, open_model

LANES = 128  # rows are multiples of it, as TPU kernels want them


class Run(NamedTuple):
  """All that the run loop works on, resolved and checked; nothing is on a device yet."""

  model: OpenModel
  tokenizer: Tokenizer
  train_pairs: list[PairTokens]
  eval_pairs: list[PairTokens]
  skips: dict[str, SkipReport]
  requests: list[Request]
  program: ProgramConfig


def resolve(config) -> Run:
  """Opens and checks all that the config names.

  Raises:
    UserError: a field, file, model or prompt that cannot be used, and what to change.
  """
  validate(config)
  model = open_model(config.model.source)
  tokenizer = load_tokenizer(config.model.source)
  if tokenizer.vocab_size > model.config.vocab_size:
    raise UserError(
      f"the tokenizer of {config.model.source} has {tokenizer.vocab_size} tokens, the model only "
      f"{model.config.vocab_size}; use the tokenizer that belongs to the model"
    )
  train_pairs, eval_pairs, skips = _load_data(config, tokenizer)
  prompts = load_prompts(config.generate, tokenizer) if generates(config) else []
  _check_context(config, model, prompts)
  requests = make_requests(prompts, config.generate.num_samples)
  return Run(
    model,
    tokenizer,
    train_pairs,
    eval_pairs,
    skips,
    requests,
    _program_config(config, model, tokenizer, requests),
  )


def _load_data(config, tokenizer):
  pairs, report = load_pairs(config.data, tokenizer, config.data.train, config.seed)
  skips = {"train": report}
  if config.data.eval:
    held_out, skips["eval"] = load_pairs(config.data, tokenizer, config.data.eval, config.seed + 1)
  else:
    fraction = config.data.eval_fraction if evaluates(config) else 0.0
    pairs, held_out = split_pairs(pairs, fraction, config.seed)
  if len(pairs) < config.train.batch_size:
    raise UserError(
      f"--config.train.batch_size={config.train.batch_size} needs at least that many "
      f"training pairs, and there are {len(pairs)}; lower it or add data"
    )
  if evaluates(config) and not held_out:
    raise UserError(
      "evaluation needs held-out pairs: set --config.data.eval or "
      "--config.data.eval_fraction, or switch it off with "
      "--config.evaluate.every=0 --config.evaluate.at_end=False"
    )
  return pairs, held_out, skips


def _check_context(config, model: OpenModel, prompts: list[Prompt]) -> None:
  limit = model.config.max_position_embeddings
  if config.data.max_length > limit:
    raise UserError(
      f"--config.data.max_length={config.data.max_length} exceeds the model's "
      f"context of {limit} tokens; lower it"
    )
  for prompt in prompts:
    total = len(prompt.tokens) + config.generate.max_new_tokens
    if total > limit:
      raise UserError(
        f"prompt {prompt.index} has {len(prompt.tokens)} tokens, and with "
        f"--config.generate.max_new_tokens={config.generate.max_new_tokens} exceeds the model's "
        f"context of {limit}; lower the budget or shorten the prompt"
      )


def _program_config(
  config, model: OpenModel, tokenizer: Tokenizer, requests: list[Request]
) -> ProgramConfig:
  mesh = make_mesh(config.mesh.tensor)
  shards = mesh.shape["host"] * mesh.shape["fsdp"]
  rows = config.train.micro_batch_rows or shards
  if rows % shards:
    raise UserError(
      f"--config.train.micro_batch_rows={rows} must be a multiple of the {shards} "
      "data shards (devices / tensor), or 0 for one row per shard"
    )
  dtype = config.model.compute_dtype
  if dtype == "auto":
    dtype = "float32" if mesh.devices.flat[0].platform == "cpu" else "bfloat16"
  schedule = make_schedule(config.train)
  if len(tokenizer.eos_ids) > MAX_STOP_IDS:
    raise UserError(
      f"the tokenizer has {len(tokenizer.eos_ids)} end tokens; at most {MAX_STOP_IDS} are supported"
    )
  groups = mesh.shape["host"] if config.generate.mode == "host_data_parallel" else 1
  generation = config.generate
  if not requests:
    # A run that never generates keeps a generate branch of the smallest size.
    requests = make_requests([Prompt(0, "", np.zeros(1, np.int32))], 1)
    generation = generation.copy_and_resolve_references()
    generation.max_new_tokens = 1
  step = StepConfig(
    model=model.config,
    simpo=SimPOConfig(**config.simpo.to_dict()),
    dtype=jnp.dtype(dtype),
    remat=config.train.remat == "full",
    pairs=config.train.batch_size,
    slots=config.data.max_pairs_per_row,
    rows=NamedSharding(mesh, ROWS),
    weights=named(mesh, param_specs(model.config, mesh, TRAIN_RULES)),
  )
  return ProgramConfig(
    step=step,
    batch=batch_shape(
      config.train.batch_size,
      round_up(row_length(config.data), LANES),
      config.data.max_pairs_per_row,
      rows,
    ),
    generate=generate_shape(requests, generation, groups),
    mode=config.generate.mode,
    param_dtype=jnp.dtype(config.model.param_dtype),
    tx=make_optimizer(config.train, schedule, model.config),
    schedule=schedule,
    mesh=mesh,
  )


def devices_text(mesh) -> str:
  """The mesh in words: "4 x cpu, host 1 x fsdp 4 x tensor 1"."""
  kind = mesh.devices.flat[0].device_kind
  axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
  return f"{mesh.size} x {kind}, {axes}, {jax.process_count()} process(es)"
