"""The figures of a plan: memory by kind and mode, and roofline times by mode."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from simpo_jax.data.packing import pack
from simpo_jax.generate import on_mesh
from simpo_jax.models.sharding import ROWS
from simpo_jax.models.sizes import cache_bytes
from simpo_jax.plan import costs
from simpo_jax.plan.costs import Region, Total
from simpo_jax.plan.planned import Planned
from simpo_jax.plan.roofline import Cost, Machine, add_work, combine
from simpo_jax.plan.workload import (
  StepWork,
  attention_flops,
  generation_work,
  model_flops,
  step_work,
)
from simpo_jax.program import hlo
from simpo_jax.program.config import ProgramConfig
from simpo_jax.program.inputs import abstract_inputs
from simpo_jax.program.ledger import Mode
from simpo_jax.program.memory import BufferAssignment, Memory
from simpo_jax.program.state import abstract_state
from simpo_jax.train.step import trainable

_BACKWARD = 2.5  # times attention's forward flops: five matmuls instead of two
_KEY_BLOCK = 256  # keys per block in the plain XLA implementation of training attention


# --- memory ------------------------------------------------------------------------------


def memory_figures(
  cfg: ProgramConfig, memory: Memory | None, assignment: BufferAssignment | None
) -> dict[str, Any]:
  """Bytes per device by kind, and each mode's temporaries by kind.

  Args:
    memory: None if the compiler rejected the program.
    assignment: the compiler's buffer assignment, if it reports one.

  Raises:
    ValueError: both are None.
  """
  state, inputs = abstract_state(cfg), abstract_inputs(cfg)
  params, optimizer = local_bytes(state.params), local_bytes(state.opt_state)
  arguments = local_bytes(state) + local_bytes(inputs)
  code = memory.code if memory else 0
  if assignment:
    by_mode, peak = assignment.by_mode, assignment.total + code
  elif memory:
    by_mode, peak = memory.by_mode, memory.peak
  else:
    raise ValueError("the compiler rejected the program and reported no buffer assignment")
  out: dict[str, Any] = {
    "params": params,
    "optimizer_state": optimizer,
    "inputs": arguments - params - optimizer,
    "code": code,
    "temporaries": peak - code - (memory.arguments if memory else arguments),
    "alias": memory.aliased if memory else local_bytes(state),
    "peak": peak,
    "modes": {},
  }
  kinds = _kinds(cfg, assignment)
  for mode in ("train", "generate", "evaluate"):
    total = by_mode.get(mode)
    other = None if total is None else max(0, total - sum(kinds[mode].values()))
    out["modes"][mode] = {
      "temporaries": total,
      "kinds": {**kinds[mode], "other": other},
      "peak": None if total is None else peak - out["temporaries"] + total,
      "largest": [b._asdict() for b in assignment.largest[mode]] if assignment else [],
    }
  return out


def _kinds(cfg: ProgramConfig, assignment: BufferAssignment | None) -> dict[str, dict[str, int]]:
  """Bytes of those temporaries of each mode whose size follows from the config."""
  step, shape = cfg.step, cfg.generate
  sums = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32, sharding=x.sharding),
    trainable(abstract_state(cfg).params, step.frozen),
  )
  page = on_mesh.page_bytes(step.model, cfg.mesh, cfg.mode, shape.page_size, step.dtype)
  pool = shape.num_pages * page
  if assignment:
    # The compiler pads pages of few lanes: take the size that it allocated.
    pages = f"[{step.model.num_hidden_layers * shape.num_pages},{shape.page_size},"
    pool = max([b.bytes for b in assignment.largest["generate"] if pages in b.shape], default=pool)
  weights = on_mesh.weight_bytes(step.model, cfg.mesh, cfg.mode, step.dtype)
  return {
    "train": {"gradients": local_bytes(sums)},
    "generate": {"kv_pool": pool, "decode_weights": weights},
    "evaluate": {},
  }


def local_bytes(tree: PyTree) -> int:
  """Returns the bytes per device of a tree of abstract arrays with shardings."""
  return sum(
    math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree)
  )


# --- modes -------------------------------------------------------------------------------


def mode_figures(planned: Planned, module: hlo.Module, machine: Machine) -> dict[str, Any]:
  """Returns flops, bytes, collectives and roofline times of each mode."""
  cfg = planned.program
  names = dict(zip(Mode, hlo.branches(module, len(Mode)), strict=True))
  branch = lambda mode: costs.region(module, names[mode])  # noqa: E731
  batch = pack(planned.pairs, cfg.batch)
  windows = planned.model.windows
  step = step_work(planned.pairs, batch, cfg.batch, cfg.step.logits_chunk, windows)
  out = {
    "train": _step(planned, branch(Mode.TRAIN), step, machine, backward=True),
    "evaluate": _step(planned, branch(Mode.EVALUATE), step, machine, backward=False),
  }
  if planned.requests:
    out["generate"] = _generation(planned, branch(Mode.GENERATE), machine)
  return out


def _step(
  planned: Planned, branch: Region, work: StepWork, machine: Machine, backward: bool
) -> dict[str, Any]:
  """Figures of a training step, or of an evaluation batch of the same size."""
  cfg, model = planned.program, planned.model

  def trips(loop: Region) -> float:
    if any(loop is outer for outer in branch.loops):
      return work.micro
    if "attention" in loop.scope:  # key blocks seen by a query block
      return work.keys / max(work.tokens, 1) / _KEY_BLOCK + 1
    return work.chunks

  total = costs.total(branch, trips)
  # For the busiest device, which has a row in every micro-batch.
  rows = cfg.batch.rows / math.prod(cfg.mesh.shape[axis] for axis in ROWS[0]) * work.micro
  keys = work.keys / work.rows * rows / cfg.mesh.shape["tensor"]
  # Attention is the only custom kernel.
  kernels = any(r.kernels for r in costs.walk(branch))
  if kernels:
    recomputed = cfg.step.remat != "none"
    passes = 1 + recomputed + _BACKWARD if backward else 1
    total = add_work(total, passes * attention_flops(model, keys))
  cost = machine.price(total)
  needed = model_flops(model, work, backward, frozen=cfg.step.lora is not None)
  out = _json(cost)
  seconds, chip = cost.seconds, machine.chip
  out.update(
    counted="the program's text" + (", attention by formula" if kernels else ""),
    micro_batches=work.micro,
    rows=work.rows,
    tokens=work.tokens,
    response_tokens=work.targets,
    model_flops=needed / machine.mesh.size,
    tokens_per_second=work.tokens / seconds if seconds else None,
    model_flops_utilization=(
      needed / machine.mesh.size / chip.flops / seconds if chip and seconds else None
    ),
  )
  return out


def _generation(planned: Planned, branch: Region, machine: Machine) -> dict[str, Any]:
  """Figures of the generation of all requests, each at its full token budget."""
  cfg, model = planned.program, planned.model
  work = generation_work(planned.requests, planned.assignments, cfg.generate, model.windows)
  price = functools.partial(_price, machine=machine)
  decodes, prefill = {}, None
  for loop in costs.walk(branch):
    if loop.trips is not None:
      continue
    for width in cfg.generate.widths:
      if loop.scope.endswith(f"/decode_{width}/while"):
        decodes[width] = loop
    # The same scope also contains a loop that copies shared pages, without matmuls.
    if loop.scope.endswith("/prefill/while") and sum(r.flops for r in costs.walk(loop)):
      prefill = loop
  rounds = [r for r in branch.loops if r.trips is None]

  parts = {
    "resharding": (price(branch), 1),
    "refill": (combine([(price(r), 1) for r in rounds]), work.rounds),
  }
  shards = on_mesh.head_shards(model, cfg.mesh, cfg.mode)
  itemsize = cfg.step.activations.itemsize
  if prefill is not None and work.passes:
    flops = attention_flops(model, work.prompt_keys) / shards / work.passes
    chunk_ends = work.prompt_keys / cfg.generate.chunk  # each chunk reads all earlier tokens
    moved = cache_bytes(model, chunk_ends, itemsize) / shards / work.passes
    parts["prefill_pass"] = (price(prefill, flops, moved), work.passes)
  steps = sum(work.steps.values())
  flops = attention_flops(model, work.context) / shards / steps
  moved = cache_bytes(model, work.context, itemsize) / shards / steps
  for width, loop in decodes.items():
    parts[f"decode_step_{width}"] = (price(loop, flops, moved), work.steps[width])

  combined = combine(list(parts.values()))
  # Parts run one after the other, each with its own bound: the sum exceeds the roofline of
  # the combined cost.
  seconds = [cost.seconds * n for cost, n in parts.values() if cost.seconds is not None]
  total = sum(seconds) if len(seconds) == len(parts) else None
  out = _json(combined, collectives=False)
  out.update(
    roofline_seconds=total,
    bound=None,
    counted="the program's text, attention by formula",
    collectives=[
      {"part": name, **x} for name, (cost, _) in parts.items() for x in _json(cost)["collectives"]
    ],
    requests=len(planned.requests),
    tokens=work.tokens,
    tokens_per_second=work.tokens / total if total else None,
    decode_steps=steps,
    parts={
      name: {"times": times, **_json(cost, collectives=False)}
      for name, (cost, times) in parts.items()
    },
  )
  return out


def _price(region: Region, flops: float = 0.0, moved: float = 0.0, *, machine: Machine) -> Cost:
  """One iteration of a region without its inner loops of unknown trip count, plus kernels."""
  return machine.price(add_work(_without_dynamic_loops(region), flops, moved))


def _without_dynamic_loops(region: Region) -> Total:
  return costs.total(region, lambda loop: 0)


def _json(cost: Cost, collectives: bool = True) -> dict[str, Any]:
  out = {
    "flops": cost.flops,
    "bytes": cost.bytes,
    "roofline_seconds": cost.seconds,
    "bound": cost.bound,
    "compute_seconds": cost.compute_seconds,
    "memory_seconds": cost.memory_seconds,
    "exchange_seconds": cost.exchange_seconds,
  }
  if collectives:
    out["collectives"] = [{**x._asdict(), "axes": list(x.axes)} for x in cost.exchanges if x.count]
  return out
