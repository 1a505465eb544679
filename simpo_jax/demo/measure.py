"""What the demo's model says: its answers by style, counted, tabulated and drawn."""

import json
import pathlib
from typing import Any

from rich.markup import escape
from rich.table import Table

from simpo_jax.compare.curve import Panel
from simpo_jax.compare.evaluations import Estimate, estimates, evaluation_panels, percent, share
from simpo_jax.demo.text import judge

Samples = dict[int, list[dict[str, Any]]]  # by step, each in the order of prompts and samples
_APART = 24  # prompts from one that is shown to the next: of another animal and kind
_COUNTS = {  # how an answer is counted; see `judge`
  "polite": lambda verdict: verdict.style == "polite",
  "grumpy": lambda verdict: verdict.style == "grumpy",
  "neither": lambda verdict: verdict.style is None,
  "right": lambda verdict: verdict.right,
}


def read_samples(run: pathlib.Path) -> Samples:
  """The answers of every generation of a run."""
  return {
    int(path.parent.name.removeprefix("step_")): [
      json.loads(line) for line in path.read_text().splitlines()
    ]
    for path in sorted(run.glob("samples/step_*/host_0000_of_0001.jsonl"))
  }


def counts(rows: list[dict[str, Any]]) -> dict[str, Estimate]:
  """The share of the answers that count as each of `_COUNTS`, with its interval."""
  verdicts = [judge(row["prompt"], row["generated_text"]) for row in rows]
  return {name: share(sum(map(rule, verdicts)), len(rows)) for name, rule in _COUNTS.items()}


def samples_table(samples: Samples) -> Table:
  """The shares by step, and one question with its answers."""
  first = min(samples)
  table = Table(
    title=f"{len(samples[first])} answers to held-out questions, in brackets 95% intervals",
    title_justify="left",
    show_edge=False,
    pad_edge=False,
    caption="polite, grumpy: how it begins; right: true, and nothing but an answer",
    caption_justify="left",
  )
  table.add_column("")
  for step in samples:
    table.add_column(f"step {step}")
  found = [counts(rows) for rows in samples.values()]
  for name in _COUNTS:
    table.add_row(name, *(percent(c[name]) for c in found))
  table.add_section()
  per_prompt = 1 + max(row["sample_index"] for row in samples[first])
  for i in range(0, 3 * _APART * per_prompt, _APART * per_prompt):
    question = samples[first][i]["prompt"]
    answers = [rows[i]["generated_text"] for rows in samples.values()]
    table.add_row(*map(escape, (question, *answers)))
  return table


def panels(
  run: pathlib.Path, evaluations: dict[int, list[dict[str, Any]]], samples: Samples
) -> list[Panel]:
  """Accuracy and margin, and the answers beside them."""
  shares = {step: counts(rows) for step, rows in samples.items()}
  return [
    *evaluation_panels(run, evaluations),
    Panel(
      "answers, %",
      [
        estimates(name, {step: [100 * x for x in c[name]] for step, c in shares.items()})
        for name in _COUNTS
        if name != "neither"
      ],
      (0.0, 100.0),
    ),
  ]
