"""The one program of a run: train, generate, evaluate or abort, in one executable.

    state, report = program(state, batch, requests, ledger)

It is lowered and compiled once, from abstract values, before the first launch,
and the compiled object is what gets called: it cannot retrace. `state` is donated
and updated in place. Every device launch of a run is a launch of this program.
"""

import dataclasses
import functools
import hashlib
import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from simpo_jax import inference
from simpo_jax import model as llama
from simpo_jax.capacity import HEADROOM, device_bytes
from simpo_jax.data.packing import Batch, BatchShape, empty_batch
from simpo_jax.generate import Generated, GenerateShape, Requests
from simpo_jax.ledger import AGREE, FIELDS, STOP, Mode
from simpo_jax.lora import abstract_weights, merge
from simpo_jax.memory import Memory, memory_of
from simpo_jax.requests import empty_requests
from simpo_jax.sharding import ROWS, named, place
from simpo_jax.train import Metrics, StepConfig, TrainState, evaluate_step, train_step, trainable

# Training gathers weights behind matrix products. Left to its defaults the compiler waits for
# them, or multiplies by one shard after another ("windowed einsum").
TPU_OPTIONS = {
  "xla_enable_async_all_gather": "true",
  "xla_tpu_enable_async_collective_fusion": "true",
  "xla_tpu_enable_async_collective_fusion_fuse_all_gather": "true",
  "xla_tpu_enable_async_collective_fusion_multiple_steps": "true",
  "xla_tpu_overlap_compute_collective_tc": "true",
  "xla_jf_spmd_threshold_for_windowed_einsum_mib": "1000000",
}


@dataclasses.dataclass(frozen=True)
class ProgramConfig:
  """Everything that the compiled program depends on."""

  step: StepConfig
  batch: BatchShape
  generate: GenerateShape
  mode: str  # host_data_parallel | global_mesh
  param_dtype: Any
  tx: optax.GradientTransformation
  schedule: optax.Schedule
  mesh: Mesh


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


def state_sharding(cfg: ProgramConfig):
  """NamedShardings of the train state: optimizer moments lie as their weights do."""
  weights, replicated = cfg.step.weights, NamedSharding(cfg.mesh, P())
  shardings = trainable(weights, cfg.step.frozen)
  params = trainable(_abstract_params(cfg), cfg.step.frozen)
  # optax's own tree_map_params would run the optimizer's init on the device.
  like_params = lambda x: jax.tree.structure(x) == jax.tree.structure(params)  # noqa: E731
  optimizer = jax.tree.map(
    lambda x: shardings if like_params(x) else replicated,
    jax.eval_shape(cfg.tx.init, params),
    is_leaf=like_params,
  )
  return TrainState(weights, optimizer, replicated, shardings if cfg.step.ema_decay else None)


def abstract_state(cfg: ProgramConfig) -> TrainState:
  """Shapes, dtypes and shardings of the train state."""
  params = _abstract_params(cfg)
  learning = trainable(params, cfg.step.frozen)
  shapes = TrainState(
    params,
    jax.eval_shape(cfg.tx.init, learning),
    jax.ShapeDtypeStruct((), jnp.int32),
    learning if cfg.step.ema_decay else None,
  )
  return jax.tree.map(_with_sharding, shapes, state_sharding(cfg))


def init_state(cfg: ProgramConfig, params: llama.Params) -> TrainState:
  """The state of step 0 around placed weights; nothing compiles.

  AdamW's state starts as zeros throughout, so numpy can make it.
  """
  abstract = abstract_state(cfg)

  def zeros(x):
    return jax.make_array_from_callback(
      x.shape, x.sharding, lambda _: np.zeros(x.sharding.shard_shape(x.shape), x.dtype)
    )

  def copy(x):
    parts = {str(shard.index): shard.data for shard in x.addressable_shards}
    return jax.make_array_from_callback(
      x.shape, x.sharding, lambda index: np.array(parts[str(index)])
    )

  return TrainState(
    params,
    jax.tree.map(zeros, abstract.opt_state),
    zeros(abstract.step),
    jax.tree.map(copy, trainable(params, cfg.step.frozen)) if cfg.step.ema_decay else None,
  )


def input_shardings(cfg: ProgramConfig) -> tuple[Batch, Requests, NamedSharding]:
  """NamedShardings of (batch, requests, ledger)."""
  rows = P(None, *ROWS)
  batch = Batch(*[rows] * (len(Batch._fields) - 1), num_micro=P())
  group = P("host") if cfg.generate.groups > 1 else P()
  asked = jax.tree.map(lambda _: group, _no_requests(cfg).each)
  requests = Requests(asked, stops=P(), seed=P())
  return named(cfg.mesh, (batch, requests, P("host")))


def abstract_inputs(cfg: ProgramConfig):
  """Shapes, dtypes and shardings of (batch, requests, ledger)."""
  ledger = np.zeros((cfg.mesh.shape["host"], len(FIELDS)), np.int32)
  values = (empty_batch(cfg.batch), _no_requests(cfg), ledger)
  return jax.tree.map(_with_sharding, values, input_shardings(cfg))


def place_inputs(values, shardings):
  """Places a tree of numpy arrays as `input_shardings` says."""
  return jax.tree.map(place, values, shardings)


def own_rows(cfg: ProgramConfig) -> range:
  """The rows of a micro-batch that lie on this process's devices."""
  sharding = NamedSharding(cfg.mesh, ROWS)
  rows = (cfg.batch.rows,)
  spans = [i[0].indices(*rows) for i in sharding.addressable_devices_indices_map(rows).values()]
  return range(min(start for start, *_ in spans), max(stop for _, stop, _ in spans))


def place_batch(cfg: ProgramConfig, batch: Batch, shardings: Batch) -> Batch:
  """Places a batch of which this process holds its `own_rows` alone."""
  own = own_rows(cfg)

  def put(value, sharding):
    if not value.ndim:
      return place(value, sharding)

    def part(index):
      start, stop, _ = index[1].indices(cfg.batch.rows)
      return value[:, start - own.start : stop - own.start]

    shape = (value.shape[0], cfg.batch.rows, *value.shape[2:])
    return jax.make_array_from_callback(shape, sharding, part)

  return jax.tree.map(put, batch, shardings)


def build(cfg: ProgramConfig):
  """The program as a jitted function; `compile_program` makes the executable."""
  replicated = NamedSharding(cfg.mesh, P())

  def generation(params, requests):
    step = cfg.step
    whole = functools.partial(merge, lora=step.lora, shardings=step.weights)
    return inference.generate(
      params, requests, step.model, cfg.mesh, cfg.mode, cfg.generate, step.dtype, whole
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
    agreed = jnp.all(rows[:, :AGREE] == rows[0, :AGREE])
    # A stop asked for by any host turns this launch into none at all, on every host.
    stop = jnp.any(rows[:, STOP] != 0)
    mode = jnp.where(agreed & ~stop, rows[0, 0], Mode.ABORT)
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
  return dict(TPU_OPTIONS) if mesh.devices.flat[0].platform == "tpu" else {}


def compile_program(cfg: ProgramConfig, lowered: Lowered | None = None) -> Compiled:
  """Compiles the lowered program; lowers it first if that was not done."""
  lowered = lowered or lower_program(cfg)
  start = time.perf_counter()
  compiled = lowered.stage.compile(compiler_options(cfg.mesh))
  memory = memory_of(compiled)
  state = _state_bytes(cfg)
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
  own = [d for d in devices if d.process_index == jax.process_index()]
  total = device_bytes((own or devices)[0])
  if total is None:
    return None
  weights = inference.weight_bytes(cfg.step.model, cfg.mesh, cfg.mode, cfg.step.dtype)
  return int(total * (1 - HEADROOM)) - _state_bytes(cfg) - weights


def _state_bytes(cfg: ProgramConfig) -> int:
  """Bytes of the train state on one device."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
    for x in jax.tree.leaves(abstract_state(cfg))
  )


def _no_requests(cfg: ProgramConfig) -> Requests:
  return empty_requests(cfg.generate, cfg.step.model.vocab_size)


def _abstract_params(cfg: ProgramConfig) -> llama.Params:
  return abstract_weights(cfg.step.model, cfg.param_dtype, cfg.step.lora)


def _with_sharding(x, sharding):
  return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
