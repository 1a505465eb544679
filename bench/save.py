"""Benchmarks how much an asynchronous checkpoint save slows down training.

  python bench/save.py --model=SmolLM2-135M-Instruct.Q4_1.gguf --data=dpo_en_demo.json --pairs=8

The figures in docs/performance.md were measured with --saves=4 in addition.

Trains the same steps in two processes: without saves, and with a save after every second step.
During steps 3, 5, ... of the second run a checkpoint is written in the background; the cost of a
save is how much longer that step takes, plus the time that the run blocked before it. The steps
in between calibrate for changes in the machine's speed between the two runs.
"""

import json
import pathlib
import statistics
import subprocess
import sys
import tempfile

import common
from absl import app, flags

from simpo_jax import storage
from simpo_jax.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parent.parent

_MODEL = flags.DEFINE_string("model", None, "a .gguf file or a folder", required=True)
_DATA = flags.DEFINE_string("data", None, "file of preference pairs", required=True)
_PAIRS = flags.DEFINE_integer("pairs", 8, "pairs per step", lower_bound=1)
_SAVES = flags.DEFINE_integer("saves", 3, "checkpoints", lower_bound=1)
_SCRATCH = flags.DEFINE_string(
  "scratch", None, "folder for the runs; default: the system's temporary folder"
)


def main(argv: list[str]) -> None:
  """Runs the benchmark and prints its table."""
  del argv
  with tempfile.TemporaryDirectory(prefix="simpo_jax_save_", dir=_SCRATCH.value) as name:
    folder = pathlib.Path(name)
    without_saves, _ = _run(folder / "without", every=0)
    with_saves, saves = _run(folder / "with", every=2)
    size = sum(storage.sizes(folder / "with" / "checkpoints").values())
  # Without the first step, which also pays for first-touch memory.
  pace = statistics.mean(with_saves[i] / without_saves[i] for i in range(1, len(with_saves), 2))
  rows = []
  for index, waited in zip(range(2, len(with_saves), 2), saves, strict=True):
    alone = without_saves[index] * pace
    rows.append(_cost(str(index + 1), alone, with_saves[index], waited))
  means = [
    statistics.mean(row[name] for row in rows) for name in ("alone", "while_saving", "waited")
  ]
  rows.append(_cost("mean", *means))
  common.report(
    f"seconds per step; saves of {size / 2**30:.2f} GiB, {_PAIRS.value} pairs per step; steps "
    f"without a save took {pace:.3f} times as long in the second run",
    common.result("saving", "extra seconds per save", rows, ours=rows[-1]["cost"]),
  )


def _cost(step: str, alone: float, while_saving: float, waited: float) -> dict:
  cost = while_saving - alone + waited
  return {
    "step": step,
    "alone": alone,
    "while_saving": while_saving,
    "waited": waited,
    "cost": cost,
    "percent": 100 * cost / alone,
  }


def _run(folder: pathlib.Path, every: int) -> tuple[list[float], list[float]]:
  """Trains; returns the seconds of each step, and the seconds that each save blocked."""
  common.say(f"training {'with' if every else 'without'} saves")
  config = {
    "model.source": _MODEL.value,
    "data.train": _DATA.value,
    "train.steps": 2 * _SAVES.value + 1,
    "train.batch_size": _PAIRS.value,
    "generate.at_steps": "()",
    "evaluate.at_end": False,
    "checkpoint.every": every,
    "checkpoint.keep": 1,
    "checkpoint.at_end": False,
  }
  command = [sys.executable, "-m", "simpo_jax.main", f"--config={ROOT}/configs/m11.py:smollm2"]
  command += [f"--config.{name}={value}" for name, value in config.items()]
  command += [f"--workdir={folder}"]
  done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
  if done.returncode:
    raise UserError(f"a run failed:\n{done.stdout}")
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  steps = [row["step_seconds"] for row in rows if row["mode"] == "train"]
  timings = json.loads((folder / "run.json").read_text())["timings"]
  return steps, [save["seconds"] for save in timings["checkpoint_seconds"]]


if __name__ == "__main__":
  app.run(common.with_user_errors(main))
