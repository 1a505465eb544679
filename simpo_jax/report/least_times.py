"""Least times: what a run's work takes at the rates of its devices.

A training step's floor is the matrix products of the weights alone: 2 flops a weight and
token forward, 4 backward (2 where the weights are frozen), and logits of response tokens
only. Attention, the optimizer, exchange and recomputation are left out. A generation's floor
is its tokens' matrix products, or reading the weights once per decode step, of which there
are as many as its longest answer has tokens, and the cached keys and values: whichever
takes longer. So no program can be faster, and most have to be somewhat slower.
"""

from typing import Any

import numpy as np

from simpo_jax.distributed.chips import chip_of
from simpo_jax.runtime.machine_rates import READ_BYTES


def rates_of(record: dict[str, Any]) -> dict[str, Any] | None:
  """Rates of one device, and where they are from; None where nothing is known.

  Args:
    record: run.json.
  """
  kind = record.get("devices", {}).get("kind", "")
  if chip := chip_of(kind):
    source = f"maker's figures of a {chip.name}, bfloat16"
    return {"flops": chip.flops, "bytes_per_second": chip.hbm_rate, "source": source}
  if measured := record.get("rates"):
    count = record["devices"]["count"]  # of one machine, whose cores the devices share
    per_device = {k: measured[k] / count for k in ("flops", "bytes_per_second")}
    return {**per_device, "source": measured["source"]}
  return None


def train_seconds(
  record: dict[str, Any], config: dict[str, Any], row: dict[str, Any]
) -> float | None:
  """Least seconds of a training step.

  Args:
    record: run.json, for the model and the devices.
    row: the step's of metrics.jsonl.
  """
  rates, model = rates_of(record), record.get("model")
  if rates is None or model is None:
    return None
  try:
    tokens = row["tokens_per_second"] * row["step_seconds"]
    targets = (row["length/chosen"] + row["length/rejected"]) * config["train"]["batch_size"]
    per_weight = 4 if config["train"].get("lora_rank") else 6
    flops = per_weight * (model["layer_weights"] * tokens + model["output_weights"] * targets)
    return flops / (rates["flops"] * record["devices"]["count"])
  except (KeyError, TypeError):
    return None


def generate_seconds(
  record: dict[str, Any], config: dict[str, Any], counts: np.ndarray
) -> float | None:
  """Least seconds of a generation.

  Args:
    counts: tokens of each of its answers.
  """
  rates, model = rates_of(record), record.get("model")
  if rates is None or model is None:
    return None
  try:
    devices, counts = record["devices"]["count"], np.asarray(counts, np.float64)
    weights = model["layer_weights"] + model["output_weights"]
    compute = 2 * weights * counts.sum() / (rates["flops"] * devices)
    alone = config["generate"]["mode"] == "host_data_parallel"
    sharing = devices / record["processes"] if alone else devices
    size = weights * model["item_bytes"]
    if "rates" in record and size <= READ_BYTES:
      return float(compute)
    cached = model["cache_bytes_per_token"] * float(np.sum(counts * (counts - 1))) / 2
    read = counts.max() * size / sharing + cached / devices
    return float(max(compute, read / rates["bytes_per_second"]))
  except (KeyError, TypeError, ValueError):
    return None
