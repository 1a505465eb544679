"""Compares the first and last evaluation of a run on its held-out pairs, with 95% intervals.

Examples:
  python -m simpo_jax.compare --workdir=runs/mine
  python -m simpo_jax.compare --workdir=runs/mine --svg=curve.svg

The run must have evaluated at least twice, for example with --config.evaluate.at_start=True.
Accuracies have Wilson intervals, margins and changes bootstrap intervals over the pairs. The p
value of the change in accuracy is that of McNemar's exact test.
"""

import json
from collections.abc import Sequence

from absl import flags
from rich.console import Console

from simpo_jax.cli import refuse_arguments, run_program
from simpo_jax.compare.curve import draw
from simpo_jax.compare.evaluations import (
  compare,
  comparison_table,
  evaluation_panels,
  read_evaluations,
  write_text,
)
from simpo_jax.errors import UserError
from simpo_jax.storage.paths import plain

PROGRAM_FLAGS = ("workdir", "svg", "json", "debug")


def main(argv: Sequence[str]) -> None:
  """Prints the comparison, and writes the files that --svg and --json name."""
  refuse_arguments(argv, "--workdir=runs/mine")
  if not flags.FLAGS.workdir:
    raise UserError("name a run: --workdir=runs/mine")
  workdir = plain(flags.FLAGS.workdir)
  evaluations = read_evaluations(workdir)
  found = compare(evaluations)
  Console().print(comparison_table(found))
  if flags.FLAGS.svg:
    write_text(flags.FLAGS.svg, draw(evaluation_panels(workdir, evaluations)))
  if flags.FLAGS.json:
    write_text(flags.FLAGS.json, json.dumps(found._asdict(), indent=2) + "\n")


def run() -> None:
  """Defines the flags and runs the command."""
  flags.DEFINE_string("workdir", None, "Workdir of the run.")
  flags.DEFINE_string("svg", None, "Output file for the training curves, SVG.")
  flags.DEFINE_string("json", None, "Output file for the numbers, JSON.")
  flags.DEFINE_bool("debug", False, "Show the stack trace of errors.")
  run_program(main, PROGRAM_FLAGS)


if __name__ == "__main__":
  run()
