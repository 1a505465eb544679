"""Compiles a run's program for given devices and estimates its memory and time there.

`make_plan` returns JSON values; `plan/text.py` renders them as text. All bytes and flops
are per chip (one JAX device). All seconds are lower bounds that assume perfect overlap of
compute, memory traffic and collectives.
"""

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from simpo_jax.config import replace_fields
from simpo_jax.data.types import PairTokens, Prompt
from simpo_jax.distributed.chips import chip_of
from simpo_jax.errors import UserError, one_line
from simpo_jax.generate.kv_pool_size import NoRoom, device_bytes
from simpo_jax.generate.requests import make_requests
from simpo_jax.models.sharding import Device
from simpo_jax.models.weights import open_model
from simpo_jax.plan.advice import advise
from simpo_jax.plan.figures import memory_figures, mode_figures
from simpo_jax.plan.known_models import NAMES, known_model
from simpo_jax.plan.planned import Planned
from simpo_jax.plan.roofline import Machine
from simpo_jax.program import hlo
from simpo_jax.program.build import compiler_options, lower_program
from simpo_jax.program.config import ProgramConfig
from simpo_jax.program.configure import mesh_of, program_config
from simpo_jax.program.memory import BufferAssignment, Memory, memory_of, read_assignment
from simpo_jax.run import pairs_by_step
from simpo_jax.runtime.fingerprint import versions
from simpo_jax.runtime.launch_schedule import generates
from simpo_jax.runtime.resolve import resolve
from simpo_jax.settings import Settings

_DEFAULT_PROMPTS = 128  # assumed number if the prompt file is missing and `generate.count` is 0


class Built(NamedTuple):
  """The result of compiling the program."""

  fingerprint: str
  seconds: float  # lowering and compiling
  module: hlo.Module
  memory: Memory | None  # None if the compiler rejected the program
  assignment: BufferAssignment | None  # None if the compiler does not report it
  refused: str | None  # the compiler's error if it rejected the program


def make_plan(
  config: Settings,
  devices: Sequence[Device] | None = None,
  *,
  prompt_tokens: int = 256,
  response_tokens: int = 384,
  topology: str | None = None,
) -> dict[str, Any]:
  """Resolves and compiles a config's program, and computes its memory and roofline times.

  Args:
    devices: from `topology_devices`; None for the devices of this process.
    prompt_tokens, response_tokens: lengths to assume if prompts or data are unavailable.
    topology: name of the devices' slice, recorded in the plan.

  Returns:
    The plan as JSON values.

  Raises:
    UserError: the run itself could not start, or the model's architecture is unknown.
  """
  hosts = len({d.process_index for d in devices}) if devices else None
  mesh = mesh_of(config.mesh, devices, hosts)
  planned = describe(config, mesh, prompt_tokens, response_tokens)
  cfg = planned.program
  built = build(cfg)
  device = mesh.devices.flat[0]
  machine = Machine(mesh, chip_of(device.device_kind))
  hbm = machine.chip.hbm_bytes if machine.chip else device_bytes(device)
  memory = memory_figures(cfg, built.memory, built.assignment)
  fits = built.refused is None and (hbm is None or memory["peak"] <= hbm)
  installed = versions()
  plan = {
    "config": config.name,
    "topology": topology,
    "devices": _device_figures(mesh, machine),
    "versions": {name: installed[name] for name in ("jax", "jaxlib", "libtpu")},
    "model": {"source": config.model.source, "param_dtype": config.model.param_dtype},
    "program": built.fingerprint,
    "assumed": list(planned.assumed),
    "attention": {"train": cfg.step.attention, "generate": cfg.generate.attention},
    "attention_note": planned.attention_note,
    "pool": {
      "pages": cfg.generate.num_pages,
      "page_size": cfg.generate.page_size,
      "reason": planned.pool_reason,
    },
    "batch": cfg.batch._asdict(),
    "compile_seconds": round(built.seconds, 1),
    "fits": fits,
    "refused": built.refused,
    "peak_bytes_per_chip": memory["peak"],
    "hbm_bytes_per_chip": hbm,
    "alias_bytes": memory["alias"],
    "memory": memory,
    "modes": mode_figures(planned, built.module, machine),
  }
  plan["advice"] = advise(config, planned, plan)
  return plan


def _device_figures(mesh: Mesh, machine: Machine) -> dict[str, Any]:
  return {
    "kind": mesh.devices.flat[0].device_kind,
    "chip": machine.chip.name if machine.chip else None,
    "count": mesh.size,
    "hosts": mesh.shape["host"],
    "mesh": dict(mesh.shape),
  }


def describe(config: Settings, mesh: Mesh, prompt_tokens: int, response_tokens: int) -> Planned:
  """Returns exactly the run's program, or one of assumed sizes if parts are unavailable here.

  If memory does not suffice for the KV pool, the pool gets the fewest pages that its
  requests need.
  """
  try:
    return _describe(config, mesh, prompt_tokens, response_tokens)
  except NoRoom as error:
    config = replace_fields(config, {"generate.num_pages": error.pages})
    return _describe(config, mesh, prompt_tokens, response_tokens)


def _describe(config: Settings, mesh: Mesh, prompt_tokens: int, response_tokens: int) -> Planned:
  try:
    run = resolve(config, mesh)
  except NoRoom:
    raise
  except UserError as error:
    return _assume(config, mesh, prompt_tokens, response_tokens, one_line(error))
  return Planned(
    run.program,
    run.model.config,
    pairs_by_step(run, config)(1),
    run.requests,
    run.assignments,
    run.pool.reason,
    run.attention_note,
    (),
  )


def _assume(
  config: Settings, mesh: Mesh, prompt_tokens: int, response_tokens: int, reason: str
) -> Planned:
  source = config.model.source
  model, assumed = known_model(source), [f"the run could not be resolved here ({reason})"]
  if model is None:
    try:
      model = open_model(source).config
    except UserError as error:
      raise UserError(
        f"{reason}; a plan needs at least the model's config.json (random:FOLDER will do), or one "
        f"of the models it knows: {', '.join(NAMES)}"
      ) from error
  else:
    assumed.append(f"{source}: the sizes that this project knows of it")  # plan/known_models.py
  requests = []
  if generates(config):
    count = len(config.generate.prompt_list) or config.generate.count or _DEFAULT_PROMPTS
    length = min(prompt_tokens, config.generate.max_prompt_length)
    tokens = np.zeros(length, np.int32)
    requests = make_requests([Prompt(i, "", tokens) for i in range(count)], config.generate)
    assumed.append(f"{count} prompts of {length} tokens")
  # The automaton has at most one state per byte of the stop strings.
  states = 1 + sum(len(s.encode()) for s in config.generate.stop)
  cfg, assignments, pool, note = program_config(config, mesh, model, requests, states)
  prompt = min(prompt_tokens, config.data.max_prompt_length, config.data.max_length - 2)
  response = min(
    response_tokens, config.data.max_length - prompt, (cfg.batch.row_length - prompt) // 2
  )
  if response < 1:
    raise UserError(
      f"rows of {cfg.batch.row_length} tokens hold no pair with a prompt of {prompt}; raise "
      "--config.data.row_length or lower --prompt_tokens"
    )
  assumed.append(f"pairs of a {prompt}-token prompt and two responses of {response}")
  ids = [np.zeros(n, np.int32) for n in (prompt, response, response)]
  pairs = [PairTokens(str(i), *ids) for i in range(config.train.batch_size)]
  return Planned(
    cfg, model, pairs, requests, assignments if requests else [], pool.reason, note, tuple(assumed)
  )


def build(cfg: ProgramConfig) -> Built:
  """Compiles the program and parses the compiler's memory report.

  Raises:
    UserError: the compiler ran out of memory and reported no buffer assignment.
    jax.errors.JaxRuntimeError: any other error of the compiler.
  """
  lowered = lower_program(cfg)
  start = time.perf_counter()
  with tempfile.TemporaryDirectory() as folder:
    on_tpu = cfg.mesh.devices.flat[0].platform == "tpu"
    options: dict[str, str | bool] = {**compiler_options(cfg.mesh)}
    if on_tpu:
      options["xla_dump_to"] = folder
    try:
      compiled = lowered.stage.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
      refused = one_line(error)
      if "RESOURCE_EXHAUSTED" not in refused or not on_tpu:
        raise
      memory, text = None, _dumped(folder, "after_optimizations.txt")
    else:
      refused, memory, text = None, memory_of(compiled), compiled.as_text() or ""
    seconds = lowered.seconds + time.perf_counter() - start
    module = hlo.parse(text)
    assignment = None
    if on_tpu:
      with contextlib.suppress(ValueError):  # another libtpu version may format it differently
        assignment = read_assignment(_dumped(folder, "-buffer-assignment.txt"), module)
    if refused and assignment is None:
      raise UserError(f"the program does not fit: {refused}")
  return Built(lowered.fingerprint, seconds, module, memory, assignment, refused)


def _dumped(folder: str, name: str) -> str:
  """Reads a dump of the compiler; the largest one, since helper programs are dumped too."""
  found = list(pathlib.Path(folder).glob(f"*{name}"))
  if not found:
    raise RuntimeError(f"the compiler wrote no {name}; please report this with its version")
  return max(found, key=lambda p: p.stat().st_size).read_text()
