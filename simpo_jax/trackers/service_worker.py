"""Subprocess for Weights & Biases and MLflow; `service` runs it as a script.

Reads requests as one JSON object per line, and replies to each with one. Imports neither jax nor
modules of simpo_jax that need more than the standard library. If its input ends without a
"close", the run was killed.
"""

import json
import os
import pathlib
import secrets
import signal
import sys
import time
from typing import Any

# For a checkout that is not installed.
sys.path.append(str(pathlib.Path(__file__).parents[2]))
from simpo_jax.storage import temporary  # noqa: E402

_CLOSE_SECONDS = 60  # timeout for closing after the run was killed
_PARAMS_PER_BATCH = 100  # MLflow's limit
_MAX_PARAM_LENGTH = 500  # characters; every MLflow server accepts this many


class Wandb:
  """A run of Weights & Biases.

  Args:
    run: id of the run to resume; None: creates one.
    folder: the workdir.
    config: contents of config.json.
  """

  def __init__(self, run: str | None, folder: str, config: dict[str, Any]):
    import wandb

    self._wandb, options = wandb, config["tracking"]
    self.id = run or secrets.token_hex(4)
    self._run = wandb.init(
      project=options["wandb_project"],
      name=options["name"] or pathlib.Path(folder).name,
      mode=options["wandb_mode"],
      dir=folder,
      id=self.id,
      resume="allow",
      config=config,
      settings=wandb.Settings(console="off", silent=True),
    )
    self._run.define_metric("step")
    self._run.define_metric("*", step_metric="step")

  def write(
    self,
    number: int,
    step: int,
    group: str,
    scalars: dict[str, float],
    histograms: dict[str, list[float]],
    samples: list[dict[str, Any]],
  ) -> None:
    data = {"step": step, **scalars}
    data |= {name: self._wandb.Histogram(values) for name, values in histograms.items()}
    if samples:
      rows = [[step, *sample.values()] for sample in samples]
      data[f"{group}/samples"] = self._wandb.Table(columns=["step", *samples[0]], data=rows)
    # W&B's step is the row number: it rejects rows that it already has.
    self._run.log(data, step=number, commit=True)

  def close(self, status: str) -> None:
    if status == "stopped":
      self._run.mark_preempting()
    self._run.finish(exit_code={"done": 0, "stopped": 75}.get(status, 1))


class MLflow:
  """A run of MLflow; same arguments as `Wandb`."""

  def __init__(self, run: str | None, folder: str, config: dict[str, Any]):
    from mlflow import MlflowClient, entities

    self._entities, options = entities, config["tracking"]
    self._client = client = MlflowClient(options["mlflow_uri"] or None)
    if run:
      self.id = run
      client.update_run(run, status="RUNNING")
      return
    name = options["mlflow_experiment"]
    experiment = client.get_experiment_by_name(name)
    experiment = experiment.experiment_id if experiment else client.create_experiment(name)
    run_name = options["name"] or pathlib.Path(folder).name
    self.id = client.create_run(experiment, run_name=run_name).info.run_id
    params = [
      entities.Param(f"{section}.{name}" if name else section, str(value)[:_MAX_PARAM_LENGTH])
      for section, fields in config.items()
      for name, value in (fields.items() if isinstance(fields, dict) else [("", fields)])
    ]
    for start in range(0, len(params), _PARAMS_PER_BATCH):
      client.log_batch(self.id, params=params[start : start + _PARAMS_PER_BATCH])

  def write(
    self,
    number: int,
    step: int,
    group: str,
    scalars: dict[str, float],
    histograms: dict[str, list[float]],
    samples: list[dict[str, Any]],
  ) -> None:
    now = int(time.time() * 1000)
    metrics = [self._entities.Metric(name, x, now, step) for name, x in scalars.items()]
    self._client.log_batch(self.id, metrics)
    if samples:
      text = json.dumps(samples, indent=2, ensure_ascii=False)
      self._client.log_text(self.id, text, f"samples/step_{step:06d}.json")

  def close(self, status: str) -> None:
    statuses = {"done": "FINISHED", "stopped": "KILLED"}
    self._client.set_terminated(self.id, statuses.get(status, "FAILED"))


_TRACKERS = {"wandb": Wandb, "mlflow": MLflow}


class State:
  """The service's run id and the number of the last row it has, stored in a file."""

  def __init__(self, path: str):
    self._path = pathlib.Path(path)
    self.run: str | None = None
    self.rows = 0
    if self._path.exists():
      self.run, self.rows = json.loads(self._path.read_text()).values()

  def save(self, run: str, rows: int) -> None:
    self.run, self.rows = run, rows
    with temporary.atomic_write(self._path) as file:
      file.write(json.dumps({"run": run, "rows": rows}).encode())


def main(name: str, path: str) -> None:
  """Handles requests until the input ends."""
  # Output of the client libraries must not mix with the replies.
  replies = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  state, tracker, closed = State(path), None, False
  while line := sys.stdin.readline():
    message = json.loads(line)
    method = message.pop("do")
    try:
      if method == "open":
        tracker = _TRACKERS[name](state.run, **message)
        state.save(tracker.id, state.rows)
      elif tracker is None:
        raise RuntimeError(f"{method} before open")
      elif method == "write":
        tracker.write(**message)
        state.save(tracker.id, message["number"])
      else:
        tracker.close(**message)
        closed = True
      reply = {"rows": state.rows}
    except Exception as error:
      reason = " ".join(str(error).split())[:1000]
      reply = {"failed": f"{type(error).__name__}: {reason}"}
    try:
      print(json.dumps(reply), file=replies, flush=True)
    except BrokenPipeError:
      break
  if tracker and not closed:
    signal.alarm(_CLOSE_SECONDS)
    tracker.close("failed")


if __name__ == "__main__":
  main(*sys.argv[1:])
