"""Resolves a config into what a run needs: model, data, prompts and program sizes."""

from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from simpo_jax.data.load import load_data
from simpo_jax.data.mixture import Mixture
from simpo_jax.data.prompts import load_prompts
from simpo_jax.data.skip_report import SkipReport
from simpo_jax.data.types import PairTokens
from simpo_jax.errors import UserError
from simpo_jax.generate.kv_pool_size import Pool
from simpo_jax.generate.requests import empty_requests, make_requests, pack_requests
from simpo_jax.generate.stop_automaton import stop_automaton
from simpo_jax.generate.suppression import Suppression, make_suppression
from simpo_jax.generate.types import Assignment, Request, Requests
from simpo_jax.models.weights import OpenModel, open_model
from simpo_jax.program.config import ProgramConfig
from simpo_jax.program.configure import mesh_of, program_config
from simpo_jax.runtime.launch_schedule import evaluates, generates
from simpo_jax.settings import GenerateSettings, Settings
from simpo_jax.tokenizer.load import run_tokenizer
from simpo_jax.tokenizer.tokenizer import Tokenizer


class ResolvedRun(NamedTuple):
  """Everything that the config names, opened and checked; nothing is on a device yet."""

  model: OpenModel
  tokenizer: Tokenizer
  train_pairs: list[PairTokens] | Mixture
  eval_pairs: list[PairTokens]
  skips: dict[str, SkipReport]
  requests: list[Request]
  assignments: list[Assignment]  # one per request
  packed: Requests  # the program's input, numpy arrays
  pool: Pool
  attention_note: str | None  # where and why attention does not use the platform's kernel
  program: ProgramConfig
  date: str  # ISO 8601; the current time for chat templates


def resolve(config: Settings, mesh: Mesh | None = None, date: str = "") -> ResolvedRun:
  """Opens and checks everything that the config names.

  Args:
    mesh: of described devices, to plan a run on them; None: the devices of this run.
    date: when the run began, ISO 8601, for chat templates that print the date; "": now.

  Raises:
    UserError: a field, file, model or prompt cannot be used.
  """
  model = open_model(config.model.source)
  tokenizer = run_tokenizer(config, date)
  check_vocabulary(tokenizer, model)
  train_pairs, eval_pairs, skips = load_data(config, tokenizer, evaluates(config))
  prompts = load_prompts(config.generate, tokenizer) if generates(config) else []
  requests = make_requests(prompts, config.generate)
  _check_context(config, model, requests)
  stops = stops_of(config.generate, model, tokenizer)
  suppression = suppression_of(config.generate, model, tokenizer)
  mesh = mesh_of(config.mesh) if mesh is None else mesh
  sized = program_config(config, mesh, model.config, requests, len(stops))
  shape, seed = sized.program.generate, config.generate.seed
  return ResolvedRun(
    model=model,
    tokenizer=tokenizer,
    train_pairs=train_pairs,
    eval_pairs=eval_pairs,
    skips=skips,
    requests=requests,
    assignments=sized.assignments if requests else [],
    packed=pack_requests(requests, sized.assignments, shape, stops, seed, suppression)
    if requests
    else empty_requests(shape, model.config.vocab_size),
    pool=sized.pool,
    attention_note=sized.attention_note,
    program=sized.program,
    date=date,
  )


def check_vocabulary(tokenizer: Tokenizer, model: OpenModel) -> None:
  """Raises a UserError if the tokenizer has more tokens than the model's vocabulary."""
  if tokenizer.vocab_size > model.config.vocab_size:
    raise UserError(
      f"the tokenizer of {model.name} has {tokenizer.vocab_size} tokens, the model only "
      f"{model.config.vocab_size}; use the tokenizer that belongs to the model"
    )


def stops_of(generate: GenerateSettings, model: OpenModel, tokenizer: Tokenizer) -> np.ndarray:
  """Builds the automaton for the end tokens and stop strings; see `stop_automaton`."""
  return stop_automaton(
    model.config.vocab_size,
    _end_ids(generate, tokenizer),
    generate.stop,
    tokenizer.token_bytes() if generate.stop else None,
  )


def suppression_of(
  generate: GenerateSettings, model: OpenModel, tokenizer: Tokenizer
) -> Suppression | None:
  """Returns the suppressed tokens; see `make_suppression`."""
  return make_suppression(generate, _end_ids(generate, tokenizer), model.config.vocab_size)


def _end_ids(generate: GenerateSettings, tokenizer: Tokenizer) -> tuple[int, ...]:
  return () if generate.ignore_eos else tokenizer.eos_ids


def _check_context(config: Settings, model: OpenModel, requests: list[Request]) -> None:
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
  in_prompt = "max_new_tokens" in request.prompt.settings
  return f"{'its own ' if in_prompt else '--config.generate.'}max_new_tokens={request.budget}"


def devices_text(mesh: Mesh) -> str:
  """Describes a mesh, such as "4 x cpu, host 1 x fsdp 4 x tensor 1, 1 process(es)"."""
  kind = mesh.devices.flat[0].device_kind
  axes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items())
  return f"{mesh.size} x {kind}, {axes}, {jax.process_count()} process(es)"
