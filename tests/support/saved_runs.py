"""Workdirs with a checkpoint of given weights, as a run would have left them."""

import json

import jax
import numpy as np

from simpo_jax.checkpoint import layout, manager
from simpo_jax.config import as_json, replace_fields
from simpo_jax.models.weights import open_model
from simpo_jax.runtime.fingerprint import model_fields
from simpo_jax.settings import Settings
from simpo_jax.tokenizer.of_model import tokenizer_of
from simpo_jax.train.step import TrainState

METRICS = [
  {"step": 1, "mode": "train", "loss": 1.25, "rewards/accuracies": 0.5},
  {"step": 3, "mode": "train", "loss": 0.75, "rewards/accuracies": 1.0},
  {"step": 3, "mode": "evaluate", "loss": 0.875, "pairs": 8},
  {"step": 4, "mode": "train", "loss": 77.0, "rewards/accuracies": 0.0},
]


def save(workdir, source, params, average=None, step=3, identity=None, **settings):
  """Saves weights as the checkpoint after a step; `train__ema_decay` is `train.ema_decay`."""
  fields = {k.replace("__", "."): v for k, v in settings.items()}
  config = replace_fields(Settings(), {"model.source": str(source), **fields})
  if identity is None:
    model = open_model(str(source))
    identity = model_fields(model, tokenizer_of(model, config))
  about = {
    "config": as_json(config),
    "identity": identity,
    "launches": [],
    "bad_steps": [],
    "metrics_bytes": 0,
  }
  workdir.mkdir(exist_ok=True)
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in METRICS))
  params, average, steps = jax.device_put((params, average, np.int32(step)))
  state = TrainState(params, {}, steps, average)
  saving = manager.Checkpoints(workdir / "checkpoints", keep=9, keep_every=0)
  saving.save(layout.Position(step), state, about)
  saving.wait()
  saving.close()
  return workdir
