"""Roofline estimates: the minimum time of a run's work at its devices' peak rates.

Training counts only the matrix products with the weights: 2 flops per weight and token forward,
4 backward (2 if the weights are frozen), and logits for response tokens only. Attention, the
optimizer, communication and rematerialization are not counted. Generation takes the larger of two
times: the matrix products of its tokens, and reading the weights once per decode step (one per
token of the longest answer) plus the cached keys and values. Real programs are slower.
"""

from typing import Any

import numpy as np

from simpo_jax.distributed.chips import chip_of
from simpo_jax.runtime.machine_rates import READ_BYTES


def device_rates(record: dict[str, Any]) -> dict[str, Any] | None:
  """Returns peak rates of one device and their source; None if they are not known.

  Args:
    record: contents of run.json.

  Returns:
    flops: per second.
    bytes_per_second: of memory.
    source: where the rates come from, as text.
  """
  kind = record.get("devices", {}).get("kind", "")
  if chip := chip_of(kind):
    source = f"vendor specification of {chip.name}, bfloat16"
    return {"flops": chip.flops, "bytes_per_second": chip.hbm_rate, "source": source}
  if measured := record.get("rates"):
    count = record["devices"]["count"]  # they share the measured machine's cores
    per_device = {k: measured[k] / count for k in ("flops", "bytes_per_second")}
    return {**per_device, "source": measured["source"]}
  return None


def train_seconds(
  record: dict[str, Any], config: dict[str, Any], row: dict[str, Any]
) -> float | None:
  """Returns the minimum seconds of a training step; None if they cannot be estimated.

  Args:
    record: contents of run.json, for the model and the devices.
    config: contents of config.json.
    row: the step's row of metrics.jsonl.
  """
  rates, model = device_rates(record), record.get("model")
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
  """Returns the minimum seconds of a generation; None if they cannot be estimated.

  Args:
    record: contents of run.json, for the model and the devices.
    config: contents of config.json.
    counts: tokens of each answer.
  """
  rates, model = device_rates(record), record.get("model")
  if rates is None or model is None:
    return None
  try:
    devices, counts = record["devices"]["count"], np.asarray(counts, np.float64)
    weights = model["layer_weights"] + model["output_weights"]
    compute = 2 * weights * counts.sum() / (rates["flops"] * devices)
    per_host = config["generate"]["mode"] == "host_data_parallel"
    sharing = devices / record["processes"] if per_host else devices
    size = weights * model["item_bytes"]
    if "rates" in record and size <= READ_BYTES:
      return float(compute)
    cached = model["cache_bytes_per_token"] * float(np.sum(counts * (counts - 1))) / 2
    read = counts.max() * size / sharing + cached / devices
    return float(max(compute, read / rates["bytes_per_second"]))
  except (KeyError, TypeError, ValueError):
    return None
