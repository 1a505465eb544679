"""The one program of a run: train, generate, evaluate or abort, in one executable.

    state, report = program(state, batch, requests, ledger)

It is lowered and compiled once, from abstract values, before the first launch,
and the compiled object is what gets called: it cannot retrace. `state` is donated
and updated in place. Every device launch of a run is a launch of this program.
"""

import functools
import hashlib
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from simpo_jax.distributed.chips import COMPILER_OPTIONS, chip_of
from simpo_jax.generate import on_mesh
from simpo_jax.generate.kv_pool_size import free_bytes
from simpo_jax.generate.types import Generated
from simpo_jax.models.lora import merge
from simpo_jax.models.sharding import named
from simpo_jax.program.agreement import agreed_mode
from simpo_jax.program.config import ProgramConfig
from simpo_jax.program.inputs import abstract_inputs
from simpo_jax.program.memory import Memory, memory_of
from simpo_jax.program.state import abstract_state, state_bytes, state_sharding
from simpo_jax.train.step import (
  Metrics,
  evaluate_step,
  train_step,
)


class Report(NamedTuple):
  """What a launch tells: the mode that ran, every host's ledger row, the results.

  Only the part of the mode that ran is meaningful; the others are zeros.
  """

  mode: jax.Array  # int32 []
  ledger: jax.Array  # int32 [hosts, fields]
  metrics: Metrics
  generated: Generated


class Lowered(NamedTuple):
  """The program before the compiler."""

  stage: jax.stages.Lowered
  fingerprint: str  # of its text
  seconds: float


class Compiled(NamedTuple):
  """The executable, and what the compiler said about it."""

  call: Any
  fingerprint: str  # of the lowered program's text
  compile_seconds: float  # lowering included
  memory: Memory


def build(cfg: ProgramConfig):
  """The program as a jitted function; `compile_program` makes the executable."""
  replicated = NamedSharding(cfg.mesh, P())

  def generation(params, requests):
    step = cfg.step
    merge_lora = functools.partial(merge, lora=step.lora, shardings=step.weights)
    return on_mesh.generate(
      params, requests, step.model, cfg.mesh, cfg.mode, cfg.generate, step.dtype, merge_lora
    )

  def train(state, batch, requests):
    del requests
    state, metrics = train_step(state, batch, cfg.tx, cfg.schedule, cfg.step)
    return state, metrics, no_generation()

  def generate(state, batch, requests):
    del batch
    return state, no_metrics(), generation(state.weights, requests)

  def evaluate(state, batch, requests):
    del requests
    return state, evaluate_step(state.weights, batch, cfg.step), no_generation()

  def abort(state, batch, requests):
    del batch, requests
    return state, no_metrics(), no_generation()

  def zeros_like(f, *args):
    return lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(f, *args))

  state_in, inputs = abstract_state(cfg), abstract_inputs(cfg)
  no_metrics = zeros_like(lambda p, b: evaluate_step(p, b, cfg.step), state_in.params, inputs[0])
  no_generation = zeros_like(generation, state_in.params, inputs[1])

  def program(state, batch, requests, ledger):
    rows = jax.lax.with_sharding_constraint(ledger, replicated)
    mode = agreed_mode(rows)
    state, metrics, generated = jax.lax.switch(
      mode, (train, generate, evaluate, abort), state, batch, requests
    )
    return state, Report(mode, rows, metrics, generated)

  group = P("host") if cfg.generate.groups > 1 else P()
  # All but the log-probability of every token reaches every host, so that process 0 can tell
  # of all samples without an exchange of its own.
  answers = Generated(tokens=P(), logprobs=group, count=P(), finish=P(), logprob=P())
  report = Report(P(), P(), P(), answers)
  report = named(cfg.mesh, report)
  return jax.jit(program, donate_argnums=0, out_shardings=(state_sharding(cfg), report))


def lower_program(cfg: ProgramConfig) -> Lowered:
  """Traces and lowers the program from abstract values."""
  start = time.perf_counter()
  stage = build(cfg).lower(abstract_state(cfg), *abstract_inputs(cfg))
  fingerprint = hashlib.sha256(stage.as_text().encode()).hexdigest()[:16]
  return Lowered(stage, fingerprint, time.perf_counter() - start)


def compiler_options(mesh: Mesh) -> dict[str, str]:
  """What the program is compiled with, beside the compiler's defaults."""
  chip = chip_of(mesh.devices.flat[0].device_kind)
  return {o.name: o.value for o in COMPILER_OPTIONS if chip in o.chips}


def compile_program(cfg: ProgramConfig, lowered: Lowered | None = None) -> Compiled:
  """Compiles the lowered program; lowers it first if that was not done."""
  lowered = lowered or lower_program(cfg)
  start = time.perf_counter()
  compiled = lowered.stage.compile(compiler_options(cfg.mesh))
  memory = memory_of(compiled)
  state = state_bytes(cfg)
  if memory.aliased < state:
    raise RuntimeError(
      f"only {memory.aliased} of {state} bytes of train state are updated in place; the state "
      "would be held twice. Please report this with the versions in run.json"
    )
  seconds = lowered.seconds + time.perf_counter() - start
  return Compiled(compiled, lowered.fingerprint, seconds, memory)


def room_for_pool(cfg: ProgramConfig) -> int | None:
  """Bytes of a device's memory that the KV pool may take; None if that is unknown.

  What training's activations use at other times is free while generating.
  """
  devices = list(cfg.mesh.devices.flat)
  # Another process's device does not tell its memory; one that is only described is the first.
  local = [d for d in devices if d.process_index == jax.process_index()]
  weights = on_mesh.weight_bytes(cfg.step.model, cfg.mesh, cfg.mode, cfg.step.dtype)
  return free_bytes((local or devices)[0], state_bytes(cfg) + weights)
