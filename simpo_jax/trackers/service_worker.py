"""Weights & Biases and MLflow, in a process of their own; run as a script by `service`.

Reads a JSON object per line and answers each with one. Imports neither jax nor anything of
simpo_jax that needs more than the standard library. The end of its input without a "close" is
the end of a run that was killed.
"""

import json
import os
import pathlib
import secrets
import signal
import sys
import time
from typing import Any

sys.path.append(str(pathlib.Path(__file__).parents[2]))  # last, for a checkout not installed
from simpo_jax.storage import temporary  # noqa: E402

_AFTER = 60  # seconds that are left to it after a run that was killed
_PARAMS = 100  # that MLflow takes at once
_LONGEST = 500  # characters of a parameter that every MLflow server takes


class Wandb:
  """A run of Weights & Biases.

  Args:
    run: the id of the run to go on with; None: a new one.
    folder: the workdir.
    config: of the run.
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
    # W&B's own step is the row: it refuses those that it has.
    self._run.log(data, step=number, commit=True)

  def close(self, status: str) -> None:
    if status == "stopped":
      self._run.mark_preempting()
    self._run.finish(exit_code={"done": 0, "stopped": 75}.get(status, 1))


class MLflow:
  """A run of MLflow; the arguments are those of `Wandb`."""

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
      entities.Param(f"{section}.{name}" if name else section, str(value)[:_LONGEST])
      for section, fields in config.items()
      for name, value in (fields.items() if isinstance(fields, dict) else [("", fields)])
    ]
    for start in range(0, len(params), _PARAMS):
      client.log_batch(self.id, params=params[start : start + _PARAMS])

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
    ends = {"done": "FINISHED", "stopped": "KILLED"}
    self._client.set_terminated(self.id, ends.get(status, "FAILED"))


_TRACKERS = {"wandb": Wandb, "mlflow": MLflow}


class State:
  """The tracker's run id and the number of the last row that it has, kept in a file."""

  def __init__(self, path: str):
    self._path = pathlib.Path(path)
    self.run: str | None = None
    self.rows = 0
    if self._path.exists():
      self.run, self.rows = json.loads(self._path.read_text()).values()

  def save(self, run: str, rows: int) -> None:
    self.run, self.rows = run, rows
    with temporary.replacing(self._path) as file:
      file.write(json.dumps({"run": run, "rows": rows}).encode())


def main(name: str, path: str) -> None:
  """Answers until its input ends."""
  # What others print must not come between the answers.
  answers = os.fdopen(os.dup(1), "w")
  os.dup2(2, 1)
  state, tracker, closed = State(path), None, False
  while line := sys.stdin.readline():
    message = json.loads(line)
    what = message.pop("do")
    try:
      if what == "open":
        tracker = _TRACKERS[name](state.run, **message)
        state.save(tracker.id, state.rows)
      elif tracker is None:
        raise RuntimeError(f"{what} before open")
      elif what == "write":
        tracker.write(**message)
        state.save(tracker.id, message["number"])
      else:
        tracker.close(**message)
        closed = True
      answer = {"rows": state.rows}
    except Exception as error:
      reason = " ".join(str(error).split())[:1000]
      answer = {"failed": f"{type(error).__name__}: {reason}"}
    try:
      print(json.dumps(answer), file=answers, flush=True)
    except BrokenPipeError:
      break
  if tracker and not closed:
    signal.alarm(_AFTER)
    tracker.close("failed")


if __name__ == "__main__":
  main(*sys.argv[1:])
