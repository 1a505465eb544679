"""Learning that shows, in minutes on a CPU: a tiny model first learns a language, then a taste.

Examples:
  python -m simpo_jax.demo
  python -m simpo_jax.demo --workdir=runs/demo --seed=1

Two runs of configs/demo.py, on text that the project makes itself (demo/text.py):
`fit` learns questions on animals and answers in two styles, polite and grumpy, that are
equally likely, so that its preference between the two is a coin's toss; `prefer` goes on
from there with pairs that prefer the polite answer. What is measured is on questions and
sentences that neither run has trained on: preference accuracy, and the styles among the
answers that the model gives before, midway and after.
"""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags
from rich.console import Console

from simpo_jax import interrupts
from simpo_jax.cli import refuse_arguments, run_program
from simpo_jax.compare.curve import draw
from simpo_jax.compare.evaluations import compare, read_evaluations, table_of, write_text
from simpo_jax.demo.measure import panels, read_samples, samples_table
from simpo_jax.demo.text import STYLES, make_held_out, make_pairs, split_texts
from simpo_jax.errors import UserError
from simpo_jax.storage.paths import brief, plain
from simpo_jax.workdir.files import fresh_name

PROGRAM_FLAGS = ("workdir", "seed", "svg", "debug")
CONFIG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "demo.py"
STAGES = ("fit", "prefer")
_PAIRS = {"fit": 3240, "prefer": 900}  # of the one, every question 6 times
_SHOWN = 8  # training steps shown of each run


def write_data(folder: pathlib.Path, seed: int) -> None:
  """The pairs of both runs and those held out, with their prompts: the same for a seed."""
  training, held_out = split_texts(seed)
  rows = {
    "fit": make_pairs(training, _PAIRS["fit"], seed),
    "prefer": make_pairs(training, _PAIRS["prefer"], seed, STYLES),
    "held_out": make_held_out(held_out, seed),
    "prompts": [{"prompt": q} for questions in held_out.questions.values() for q in questions],
  }
  folder.mkdir(parents=True)
  for name, of_file in rows.items():
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_file))


def stage_fields(folder: pathlib.Path, stage: str, seed: int) -> dict[str, Any]:
  """What a stage's config does not say: its data, and what it begins with."""
  data = folder / "data"
  fields = {
    "seed": seed,
    "data.train": (str(data / f"{stage}.jsonl"),),
    "data.eval": (str(data / "held_out.jsonl"),),
  }
  if stage == "prefer":
    fields |= {
      "generate.seed": seed,
      "generate.prompts": str(data / "prompts.jsonl"),
      "checkpoint.init_from": str(folder / "fit"),
    }
  return fields


def run_stage(stage: str, folder: pathlib.Path, seed: int) -> None:
  """A run in a process of its own; its output, with a few of its training steps."""
  fields = stage_fields(folder, stage, seed)
  words = [
    *("-m", "simpo_jax.main", f"--config={CONFIG}:{stage}", f"--workdir={folder / stage}"),
    *(f"--config.{name}={value}" for name, value in fields.items()),
  ]
  print(f"\n{stage}: python {shlex.join(words)}", flush=True)
  process = subprocess.Popen(
    [sys.executable, *words],
    stdout=subprocess.PIPE,
    text=True,
    env={"JAX_PLATFORMS": "cpu", **os.environ},
  )
  try:
    for line in process.stdout or ():
      step = re.match(r"step +(\d+)/(\d+) ", line)
      if not step or int(step[1]) % max(1, int(step[2]) // _SHOWN) == 0:
        print(line, end="", flush=True)
  except KeyboardInterrupt as e:
    interrupts.heard(e)  # the run was told as well, and ends by itself
  if code := process.wait():
    sys.exit(code)


def demo(folder: pathlib.Path, seed: int, svg: pathlib.Path) -> None:
  """Both runs, then what they have changed."""
  if not CONFIG.exists():
    raise UserError(f"{CONFIG} is missing; run the demo from a checkout (pip install -e .)")
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f"--workdir={folder} is not empty; choose another folder")
  try:
    write_data(folder / "data", seed)
  except OSError as e:
    raise UserError(f"--workdir={folder} cannot be written ({e.strerror}); choose another") from e
  for stage in STAGES:
    run_stage(stage, folder, seed)
  run, console = folder / "prefer", Console(highlight=False)
  evaluations, samples = read_evaluations(run), read_samples(run)
  for table in (table_of(compare(evaluations)), samples_table(samples)):
    console.print()
    console.print(table)
  write_text(svg, draw(panels(run, evaluations, samples)))
  print(f"\nthe curve: {svg}; the text it learned from: {folder}/data")


def main(argv: Sequence[str]) -> None:
  """Reads the flags."""
  refuse_arguments(argv, "--workdir=runs/demo")
  folder = pathlib.Path(brief(plain(flags.FLAGS.workdir or fresh_name("demo"))))
  demo(folder, flags.FLAGS.seed, plain(flags.FLAGS.svg or folder / "demo.svg"))


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "Output folder; default: a new one under runs/.")
  flags.DEFINE_integer("seed", 0, "Seed for text, weights, data order and samples.", 0, 2**32 - 1)
  flags.DEFINE_string("svg", None, "Output file for the curve; default: demo.svg in the workdir.")
  flags.DEFINE_bool("debug", False, "Show the stack trace of errors.")
  run_program(main, PROGRAM_FLAGS)
