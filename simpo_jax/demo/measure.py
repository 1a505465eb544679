"""Counts the generated answers of the demo by style, and shows them as a table and a chart."""

import json
import pathlib
from typing import Any

from rich.markup import escape
from rich.table import Table

from simpo_jax.compare.curve import Panel
from simpo_jax.compare.evaluations import Estimate, estimates, evaluation_panels, percent, share
from simpo_jax.demo.text import judge

Samples = dict[int, list[dict[str, Any]]]  # sample rows by step, sorted by prompt and sample
_PROMPT_STRIDE = 24  # between the shown prompts, so that animals and kinds of questions differ
_COUNTS = {  # predicates on a `Verdict`
  "polite": lambda verdict: verdict.style == "polite",
  "grumpy": lambda verdict: verdict.style == "grumpy",
  "neither": lambda verdict: verdict.style is None,
  "right": lambda verdict: verdict.right,
}


def read_samples(run: pathlib.Path) -> Samples:
  """Reads the sample rows of all generations of a run."""
  return {
    int(path.parent.name.removeprefix("step_")): [
      json.loads(line) for line in path.read_text().splitlines()
    ]
    for path in sorted(run.glob("samples/step_*/host_0000_of_0001.jsonl"))
  }


def style_shares(rows: list[dict[str, Any]]) -> dict[str, Estimate]:
  """Returns the share of answers that satisfy each predicate of `_COUNTS`, with its interval."""
  verdicts = [judge(row["prompt"], row["generated_text"]) for row in rows]
  return {name: share(sum(map(rule, verdicts)), len(rows)) for name, rule in _COUNTS.items()}


def samples_table(samples: Samples) -> Table:
  """Returns a table of the shares by step, and of three questions with their answers."""
  first = min(samples)
  table = Table(
    title=f"{len(samples[first])} answers to held-out questions, with 95% intervals in brackets",
    title_justify="left",
    show_edge=False,
    pad_edge=False,
    caption="polite, grumpy: how the answer begins; right: a correct answer and nothing else",
    caption_justify="left",
  )
  table.add_column("")
  for step in samples:
    table.add_column(f"step {step}")
  found = [style_shares(rows) for rows in samples.values()]
  for name in _COUNTS:
    table.add_row(name, *(percent(c[name]) for c in found))
  table.add_section()
  per_prompt = 1 + max(row["sample_index"] for row in samples[first])
  for i in range(0, 3 * _PROMPT_STRIDE * per_prompt, _PROMPT_STRIDE * per_prompt):
    question = samples[first][i]["prompt"]
    answers = [rows[i]["generated_text"] for rows in samples.values()]
    table.add_row(*map(escape, (question, *answers)))
  return table


def panels(
  run: pathlib.Path, evaluations: dict[int, list[dict[str, Any]]], samples: Samples
) -> list[Panel]:
  """Returns charts of accuracy, reward margin and the shares of answers."""
  shares = {step: style_shares(rows) for step, rows in samples.items()}
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
