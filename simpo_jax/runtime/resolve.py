"""Resolves a config into what a run needs: model, data, prompts and program sizes."""

import dataclasses
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from simpo_jax.data.load import BY_PROMPT, load_data
from simpo_jax.data.mixture import Mixture
from simpo_jax.data.prompts import Prompts, load_prompts
from simpo_jax.data.skip_report import SkipReport
from simpo_jax.data.types import PairTokens
from simpo_jax.errors import UserError, shown
from simpo_jax.generate.kv_pool_size import Pool
from simpo_jax.generate.requests import empty_requests, make_requests, pack_requests
from simpo_jax.generate.stop_automaton import stop_automaton
from simpo_jax.generate.suppression import Suppression, make_suppression
from simpo_jax.generate.types import Assignment, Request, Requests
from simpo_jax.models.adapter_files import adapter_notes
from simpo_jax.models.lora import make_lora
from simpo_jax.models.weights import OpenModel, open_model
from simpo_jax.program.config import ProgramConfig
from simpo_jax.program.configure import mesh_of, program_config
from simpo_jax.runtime.launch_schedule import evaluates, generates
from simpo_jax.settings import GenerateSettings, Settings
from simpo_jax.tokenizer.of_model import tokenizer_of
from simpo_jax.tokenizer.tokenizer import NoEmbedding, Tokenizer


class ResolvedRun(NamedTuple):
  """Everything that the config names, opened and checked; nothing is on a device yet."""

  model: OpenModel
  tokenizer: Tokenizer
  train_pairs: list[PairTokens] | Mixture
  eval_pairs: list[PairTokens]
  skips: dict[str, SkipReport]
  prompts: Prompts
  requests: list[Request]
  assignments: list[Assignment]  # one per request
  packed: Requests  # the program's input, numpy arrays
  pool: Pool
  attention_note: str | None  # where and why attention does not use the platform's kernel
  program: ProgramConfig
  date: str  # ISO 8601; the current time for chat templates
  split_by: str  # how held-out pairs are chosen; see `load_data`
  notes: tuple[str, ...]  # on the data, for the user


def resolve(
  config: Settings, mesh: Mesh | None = None, date: str = "", split_by: str = BY_PROMPT
) -> ResolvedRun:
  """Opens and checks everything that the config names.

  Args:
    mesh: of described devices, to plan a run on them; None: the devices of this run.
    date: when the run began, ISO 8601, for chat templates that print the date; "": now.
    split_by: how held-out pairs are chosen; see `load_data`.

  Raises:
    UserError: a field, file, model or prompt cannot be used.
  """
  model, tokenizer = _open_model(config, date)
  data = load_data(config, tokenizer, evaluates(config), split_by)
  prompts = _load_prompts(config, tokenizer)
  requests = make_requests(prompts.prompts, config.generate)
  _check_context(config, model, requests)
  stops = stops_of(config.generate, model, tokenizer)
  suppression = suppression_of(config.generate, model, tokenizer)
  mesh = mesh_of(config.mesh) if mesh is None else mesh
  sized = program_config(config, mesh, model.config, requests, len(stops))
  shape, seed = sized.program.generate, config.generate.seed
  return ResolvedRun(
    model=model,
    tokenizer=tokenizer,
    train_pairs=data.train,
    eval_pairs=data.held_out,
    skips=data.skips,
    prompts=prompts,
    requests=requests,
    assignments=sized.assignments if requests else [],
    packed=pack_requests(requests, sized.assignments, shape, stops, seed, suppression)
    if requests
    else empty_requests(shape, model.config.vocab_size),
    pool=sized.pool,
    attention_note=sized.attention_note,
    program=sized.program,
    date=date,
    split_by=split_by,
    notes=tuple(data.notes),
  )


def _load_prompts(config: Settings, tokenizer: Tokenizer) -> Prompts:
  if not generates(config):
    return Prompts([], [], {})
  return load_prompts(config.generate, tokenizer, config.data.columns)


def _open_model(config: Settings, date: str) -> tuple[OpenModel, Tokenizer]:
  """Opens the model, with all notes on it, and its tokenizer."""
  model = open_model(config.model.source)
  trained = adapter_notes(model.adapter, make_lora(config.train)) if model.adapter else ()
  tokenizer, notes = within_vocabulary(tokenizer_of(model, config, date), model)
  return model._replace(notes=(*model.notes, *trained, *notes)), tokenizer


def within_vocabulary(tokenizer: Tokenizer, model: OpenModel) -> tuple[Tokenizer, tuple[str, ...]]:
  """Returns a tokenizer that encodes no token without a row in the embedding; and notes.

  Special tokens without a row are accepted, such as a "[PAD]" that was added for batches of equal
  length: no text becomes one, unless it spells it out, for which `encode` raises NoEmbedding.

  Raises:
    UserError: other tokens have no row, or the token that begins or ends every text has none.
  """
  rows, encode = model.config.vocab_size, tokenizer.encode
  extra = range(rows, tokenizer.vocab_size)
  if not extra:
    return tokenizer, ()
  bos = tokenizer.bos_id if tokenizer.adds_bos else None
  always = (tokenizer.eos_ids[0], tokenizer.turn_end, bos)
  if any(i in extra for i in always) or any(tokenizer.decode([i]) for i in extra):
    raise UserError(
      f"the tokenizer of {model.name} has {tokenizer.vocab_size} tokens, the model only "
      f"{rows}; use the tokenizer that belongs to the model"
    )

  def encode_within(text: str) -> list[int]:
    ids = encode(text)
    if (largest := max(ids, default=0)) >= rows:
      token = f"token {largest}, {tokenizer.token_bytes()[largest].decode(errors='replace')}"
      raise NoEmbedding(
        f"the text {shown(text)!r} has {token}, and the embedding of {model.name} only {rows} "
        "rows; remove it from the text or the chat template",
        token,
      )
    return ids

  note = (
    f"its embedding has no row for {len(extra)} special token(s) of its tokenizer; a text that "
    "holds one cannot be used"
  )
  return dataclasses.replace(tokenizer, encode=encode_within), (note,)


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
  limit = model.config.context
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
