"""Learning that shows, in minutes on a CPU: a tiny model first learns a language, then a taste.

Examples:
  python -m simpo_jax.demo
  python -m simpo_jax.demo --workdir=runs/demo --seed=1 --svg=demo.svg

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
import subprocess
import sys
from collections.abc import Sequence

from absl import app, flags
from rich.console import Console
from rich.markup import escape

from simpo_jax import learned
from simpo_jax.cli import answering, parse_flags
from simpo_jax.curve import draw
from simpo_jax.demo.measure import panels, read_samples, samples_table
from simpo_jax.demo.text import make_pairs, split_facts
from simpo_jax.errors import UserError
from simpo_jax.workdir import fresh_name

OWN_FLAGS = ("workdir", "seed", "svg", "debug")
CONFIG = pathlib.Path(__file__).resolve().parents[2] / "configs" / "demo.py"
_HELD_OUT = 200  # of the 600 facts
_FIT, _PREFER = 3200, 800  # pairs
_SHOWN = 8  # training steps shown of each run


def write_data(folder: pathlib.Path, seed: int) -> None:
  """The pairs of both runs, and what is held out: the same files for a seed."""
  facts, held_out = split_facts(_HELD_OUT, seed)
  preferred = ("polite", "grumpy")
  pairs = make_pairs(held_out, _HELD_OUT, seed, preferred)
  files = {
    "fit": make_pairs(facts, _FIT, seed),
    "prefer": make_pairs(facts, _PREFER, seed, preferred),
    "held_out": pairs,
    "prompts": [{"prompt": pair["prompt"]} for pair in pairs],
  }
  folder.mkdir(parents=True)
  for name, rows in files.items():
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def stage_flags(folder: pathlib.Path, stage: str, seed: int) -> list[str]:
  """The command line of `simpo_jax.main` for a stage, "fit" or "prefer"."""
  data = folder / "data"
  own = {
    "config": f"{CONFIG}:{stage}",
    "workdir": folder / stage,
    "config.seed": seed,
    "config.data.train": data / f"{stage}.jsonl",
    "config.data.eval": data / "held_out.jsonl",
  }
  if stage == "prefer":
    own |= {
      "config.generate.seed": seed,
      "config.generate.prompts": data / "prompts.jsonl",
      "config.checkpoint.init_from": folder / "fit",
    }
  return [f"--{name}={value}" for name, value in own.items()]


def show(folder: pathlib.Path, svg: str, console: Console) -> None:
  """Prints what the run `prefer` has changed, and draws it."""
  run = folder / "prefer"
  evaluations, samples = learned.read_evaluations(run), read_samples(run)
  console.print()
  console.print(learned.table_of(learned.learned(evaluations)))
  console.print()
  console.print(samples_table(samples))
  learned.write_text(svg, draw(panels(run, evaluations, samples)))
  console.print(f"\nthe curve is {svg}, the text is in {folder}/data", soft_wrap=True)


def _run(stage: str, options: list[str], console: Console) -> None:
  """A run in a process of its own; its output, with a few of its training steps."""
  words = ["-m", "simpo_jax.main", *options]
  console.print(f"\n[bold]{stage}[/bold]: python {escape(' '.join(words))}", soft_wrap=True)
  process = subprocess.Popen(
    [sys.executable, *words],
    stdout=subprocess.PIPE,
    text=True,
    env={"JAX_PLATFORMS": "cpu", **os.environ},
  )
  try:
    for line in process.stdout:
      step = re.match(r"step +(\d+)/(\d+) ", line)
      if not step or int(step[1]) % max(1, int(step[2]) // _SHOWN) == 0:
        print(line, end="", flush=True)
  except KeyboardInterrupt:
    pass  # the run was told as well, and ends by itself
  if code := process.wait():
    sys.exit(code)


def main(argv: Sequence[str]) -> None:
  """Both runs, then what they have changed."""
  if len(argv) > 1:
    raise UserError(f"unexpected argument {argv[1]!r}; flags look like --workdir=runs/demo")
  if not CONFIG.exists():
    raise UserError(f"{CONFIG} is missing; run the demo from a checkout (pip install -e .)")
  folder = pathlib.Path(flags.FLAGS.workdir or fresh_name("demo")).expanduser()
  if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
    raise UserError(f"--workdir={folder} is not empty; choose another folder")
  seed, console = flags.FLAGS.seed, Console(highlight=False)
  try:
    write_data(folder / "data", seed)
  except OSError as e:
    raise UserError(f"--workdir={folder} cannot be written ({e.strerror}); choose another") from e
  for stage in ("fit", "prefer"):
    _run(stage, stage_flags(folder, stage, seed), console)
  show(folder, flags.FLAGS.svg or str(folder / "demo.svg"), console)


if __name__ == "__main__":
  flags.DEFINE_string("workdir", None, "The demo's folder; default: a fresh one under runs/.")
  flags.DEFINE_integer("seed", 0, "Of the text, the weights, the order and the samples.", 0)
  flags.DEFINE_string("svg", None, "Where the curve goes; default: into the workdir.")
  flags.DEFINE_bool("debug", False, "Show the stack trace of errors.")
  app.run(
    lambda argv: answering(main, argv), flags_parser=lambda argv: parse_flags(argv, OWN_FLAGS)
  )
