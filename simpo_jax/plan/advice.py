"""Config changes that make a plan fit, with the memory that each one saves."""

import math
from typing import Any, NamedTuple

from simpo_jax.models.sharding import ROWS
from simpo_jax.plan.planned import Planned
from simpo_jax.program.config import ProgramConfig
from simpo_jax.runtime.console import human_bytes
from simpo_jax.settings import Settings

_SPARE = 0.5  # fraction of HBM: if more is free, suggest larger micro-batches


class Lever(NamedTuple):
  """A config change that saves memory."""

  modes: tuple[str, ...]  # the modes whose memory it reduces
  saved: float  # estimated bytes per device
  text: str


def advise(config: Settings, planned: Planned, plan: dict[str, Any]) -> list[str]:
  """Returns lines of advice, largest saving first; [] if there is nothing to suggest."""
  levers = _levers(config, planned, plan["memory"])
  hbm, peak = plan["hbm_bytes_per_chip"], plan["peak_bytes_per_chip"]
  if not plan["fits"]:
    exceeding = _exceeding_modes(plan)
    useful = sorted((x for x in levers if set(x.modes) & exceeding), key=lambda x: -x.saved)
    over = max(0, peak - (hbm or 0))
    lines = [
      f"over by {human_bytes(over)} in {', '.join(sorted(exceeding))}; each of these saves about:",
    ]
    lines += [f"{human_bytes(x.saved)}: {x.text}" for x in useful]
    return [*lines, "or use a larger slice, which shards state and weights over more chips"]
  if not hbm or planned.program.mesh.devices.flat[0].platform == "cpu":
    return []
  return _uses_of_free_memory(planned, plan, hbm - peak)


def _uses_of_free_memory(planned: Planned, plan: dict[str, Any], free: int) -> list[str]:
  """Suggests settings that trade `free` bytes per device for speed."""
  cfg, lines = planned.program, []
  if plan["modes"]["train"]["micro_batches"] > 1 and free > _SPARE * plan["hbm_bytes_per_chip"]:
    lines.append(
      f"--config.train.micro_batch_rows={2 * cfg.batch.rows} to gather the weights half as often"
    )
  if cfg.step.remat != "none" and _saved_activation_bytes(cfg) < free:
    lines.append(
      "--config.train.remat=none to recompute nothing, for about "
      f"{human_bytes(_saved_activation_bytes(cfg))} more"
    )
  return [f"{human_bytes(free)} are free; plan again with", *lines] if lines else []


def _saved_activation_bytes(cfg: ProgramConfig) -> float:
  """Estimates the activations per device saved for the backward pass without remat."""
  model = cfg.step.model
  rows = cfg.batch.rows / math.prod(cfg.mesh.shape[axis] for axis in ROWS[0])
  heads = model.num_attention_heads + 2 * model.num_key_value_heads
  # Inputs of the norms and of every matmul; q, k and v before and after RoPE.
  saved = 5 * model.hidden_size + 2 * heads * model.head_dim + 4 * model.intermediate_size
  tokens = rows * cfg.batch.row_length * model.num_hidden_layers / cfg.mesh.shape["tensor"]
  return tokens * saved * cfg.step.activations.itemsize


def _exceeding_modes(plan: dict[str, Any]) -> set[str]:
  """The modes that do not fit, or all modes if the compiler reports no memory per mode."""
  peaks = {mode: m["peak"] for mode, m in plan["memory"]["modes"].items()}
  hbm = plan["hbm_bytes_per_chip"]
  over = {mode for mode, peak in peaks.items() if peak is None or peak > hbm}
  return over or set(peaks)


def _levers(config: Settings, planned: Planned, memory: dict[str, Any]) -> list[Lever]:
  cfg, all_modes = planned.program, ("train", "generate", "evaluate")
  state = memory["params"] + memory["optimizer_state"]
  levers = []
  if config.train.lora_rank and config.model.param_dtype == "float32":
    text = "--config.model.param_dtype=bfloat16 (the frozen weights; adapters stay float32)"
    levers.append(Lever(all_modes, memory["params"] / 2, text))
  hosts, data = cfg.mesh.shape["host"], cfg.mesh.shape["data"]
  if not config.mesh.shard_over_hosts and hosts > 1:
    text = "--config.mesh.shard_over_hosts=True (state sharded over all hosts)"
    levers.append(Lever(all_modes, state * (1 - 1 / hosts), text))
  if data > 1:
    text = "--config.mesh.data=1 (state sharded over all devices of a host)"
    levers.append(Lever(all_modes, state * (1 - 1 / data), text))
  levers += _training(config, cfg, memory) + _generation(config, cfg, memory)
  return [x for x in levers if x.saved > 0]


def _training(config: Settings, cfg: ProgramConfig, memory: dict[str, Any]) -> list[Lever]:
  levers, both = [], ("train", "evaluate")
  other = memory["modes"]["train"]["kinds"]["other"] or 0
  batch = cfg.batch
  shards = math.prod(cfg.mesh.shape[axis] for axis in ROWS[0])
  rows = batch.rows // shards
  if rows > 1:
    text = f"--config.train.micro_batch_rows={shards} (one row per device instead of {rows})"
    levers.append(Lever(both, other * (1 - 1 / rows), text))
  if cfg.step.remat == "none":
    text = "--config.train.remat=full (each layer recomputed in the backward pass)"
    levers.append(Lever(("train",), _saved_activation_bytes(cfg), text))
  if batch.row_length >= 512:
    shorter = batch.row_length // 2 // 128 * 128
    text = f"--config.data.row_length={shorter} (shorter rows; longer pairs are skipped)"
    levers.append(Lever(both, other / 2, text))
  if cfg.mesh.shape["tensor"] == 1 and cfg.mesh.shape["fsdp"] > 1:
    text = "--config.mesh.tensor=2 (activations sharded over two devices, fewer rows at a time)"
    levers.append(Lever(both, other / 2, text))
  return levers


def _generation(config: Settings, cfg: ProgramConfig, memory: dict[str, Any]) -> list[Lever]:
  kinds, shape = memory["modes"]["generate"]["kinds"], cfg.generate
  pool, weights = kinds["kv_pool"], kinds["decode_weights"]
  levers = []
  if shape.slots > 1:
    half = shape.slots // 2
    text = f"--config.generate.max_slots={half} (sequences decoded at once, now {shape.slots})"
    levers.append(Lever(("generate",), pool * (1 - half / shape.slots), text))
    pages = max(shape.num_pages // 2, shape.pages_per_seq)
    text = f"--config.generate.num_pages={pages} (requests wait for pages, now {shape.num_pages})"
    levers.append(Lever(("generate",), pool * (1 - pages / shape.num_pages), text))
  hosts = cfg.mesh.shape["host"]
  if cfg.mode == "host_data_parallel" and hosts > 1:
    text = "--config.generate.mode=global_mesh (decode weights sharded over all hosts)"
    levers.append(Lever(("generate",), weights * (1 - 1 / hosts), text))
  if config.generate.max_new_tokens > 256:
    text = f"--config.generate.max_new_tokens={config.generate.max_new_tokens // 2}"
    levers.append(Lever(("generate",), pool / 2, text))
  return levers
