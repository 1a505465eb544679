"""The single program of a run: train, generate, evaluate or abort, in one executable.

    state, report = program(state, batch, requests, ledger)

It is lowered and compiled once, from abstract values, before the first launch. Launches
call the compiled object, so nothing is ever retraced. `state` is donated and updated in
place. Every device launch of a run is a launch of this program.
"""

import functools
import hashlib
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int32

from simpo_jax.distributed.chips import COMPILER_OPTIONS, chip_of
from simpo_jax.generate import on_mesh
from simpo_jax.generate.kv_pool_size import free_bytes
from simpo_jax.generate.types import Generated, Requests
from simpo_jax.models import llama
from simpo_jax.models.lora import merge
from simpo_jax.models.sharding import named
from simpo_jax.program.agreement import agreed_mode
from simpo_jax.program.config import ProgramConfig
from simpo_jax.program.inputs import abstract_inputs
from simpo_jax.program.memory import Memory, memory_of
from simpo_jax.program.state import abstract_state, state_bytes, state_sharding
from simpo_jax.train.batch import AnyArray, Batch
from simpo_jax.train.step import evaluate_step, train_step
from simpo_jax.train.types import Metrics, TrainState

_Out = TypeVar("_Out")
_Branch = tuple[TrainState, Metrics, Generated]


class Report(NamedTuple):
  """The output of a launch: the mode that ran, every host's ledger row, the results.

  Only the results of that mode are meaningful; the others are zeros.
  """

  mode: Int32[AnyArray, ""]
  ledger: Int32[AnyArray, "hosts fields"]
  metrics: Metrics
  generated: Generated


class Lowered(NamedTuple):
  """The lowered program."""

  stage: jax.stages.Lowered
  fingerprint: str  # hash of the StableHLO text
  seconds: float


class Compiled(NamedTuple):
  """The executable and its memory statistics."""

  call: jax.stages.Compiled
  fingerprint: str  # hash of the lowered program's text
  compile_seconds: float  # lowering included
  memory: Memory


def build(cfg: ProgramConfig) -> jax.stages.Wrapped:
  """Returns the program as a jitted function; `compile_program` compiles it."""
  replicated = NamedSharding(cfg.mesh, P())

  def generation(params: llama.Params, requests: Requests) -> Generated:
    step = cfg.step
    merge_lora = functools.partial(merge, lora=step.lora, shardings=step.weights)
    return on_mesh.generate(
      params, requests, step.model, cfg.mesh, cfg.mode, cfg.generate, step.dtype, merge_lora
    )

  def evaluation(params: llama.Params, batch: Batch) -> Metrics:
    return evaluate_step(params, batch, cfg.step)

  def train(state: TrainState, batch: Batch, requests: Requests) -> _Branch:
    del requests
    state, metrics = train_step(state, batch, cfg.tx, cfg.schedule, cfg.step)
    return state, metrics, no_generation()

  def generate(state: TrainState, batch: Batch, requests: Requests) -> _Branch:
    del batch
    return state, no_metrics(), generation(state.weights, requests)

  def evaluate(state: TrainState, batch: Batch, requests: Requests) -> _Branch:
    del requests
    return state, evaluation(state.weights, batch), no_generation()

  def abort(state: TrainState, batch: Batch, requests: Requests) -> _Branch:
    del batch, requests
    return state, no_metrics(), no_generation()

  state_in, (batch_in, requests_in, _) = abstract_state(cfg), abstract_inputs(cfg)
  no_metrics = _zeros_like(evaluation, state_in.params, batch_in)
  no_generation = _zeros_like(generation, state_in.params, requests_in)

  def program(
    state: TrainState, batch: Batch, requests: Requests, ledger: Int32[Array, "hosts fields"]
  ) -> tuple[TrainState, Report]:
    rows = jax.lax.with_sharding_constraint(ledger, replicated)
    mode = agreed_mode(rows)
    branches = train, generate, evaluate, abort
    state, metrics, generated = cast(
      _Branch, jax.lax.switch(mode, branches, state, batch, requests)
    )
    return state, Report(mode, rows, metrics, generated)

  out_shardings = state_sharding(cfg), named(cfg.mesh, _report_specs(cfg))
  return jax.jit(program, donate_argnums=0, out_shardings=out_shardings)


def _zeros_like(f: Callable[..., _Out], *args: Any) -> Callable[[], _Out]:
  """Returns a function that makes zeros with the shapes and dtypes of `f(*args)`."""

  def zeros(x: jax.ShapeDtypeStruct) -> Array:
    return jnp.zeros(x.shape, x.dtype)

  return lambda: jax.tree.map(zeros, jax.eval_shape(f, *args))


def _report_specs(cfg: ProgramConfig) -> Report:
  """PartitionSpecs of the report.

  Everything except the per-token log-probabilities is replicated to every host, so that
  process 0 can report on all samples without further communication.
  """
  group = P("host") if cfg.generate.groups > 1 else P()
  answers = Generated._make([P()] * len(Generated._fields))._replace(logprobs=group)
  return Report._make((P(), P(), P(), answers))


def lower_program(cfg: ProgramConfig) -> Lowered:
  """Traces and lowers the program from abstract values."""
  start = time.perf_counter()
  stage = build(cfg).lower(abstract_state(cfg), *abstract_inputs(cfg))
  fingerprint = hashlib.sha256(stage.as_text().encode()).hexdigest()[:16]
  return Lowered(stage, fingerprint, time.perf_counter() - start)


def compiler_options(mesh: Mesh) -> dict[str, str | bool]:
  """Returns the non-default compiler options for the chips of the mesh."""
  chip = chip_of(mesh.devices.flat[0].device_kind)
  return {o.name: o.value for o in COMPILER_OPTIONS if chip in o.chips}


def compile_program(cfg: ProgramConfig, lowered: Lowered | None = None) -> Compiled:
  """Compiles the program, after lowering it if `lowered` is None.

  Raises:
    RuntimeError: the compiler would not update the train state in place.
  """
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
  """Returns the bytes per device available for the KV pool; None if unknown.

  Activations of training are not subtracted: they are not live during generation.
  """
  devices = list(cfg.mesh.devices.flat)
  # Only local devices report their memory. A topology that is only described has none.
  local = [d for d in devices if d.process_index == jax.process_index()]
  weights = on_mesh.weight_bytes(cfg.step.model, cfg.mesh, cfg.mode, cfg.step.dtype)
  return free_bytes((local or devices)[0], state_bytes(cfg) + weights)
