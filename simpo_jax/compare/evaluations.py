"""Compares evaluations of a run: held-out accuracy and reward margin, with 95% intervals."""

import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from rich.table import Table
from scipy import stats

from simpo_jax.compare.curve import Panel, Series
from simpo_jax.errors import UserError
from simpo_jax.storage.paths import plain

_RESAMPLES = 10_000  # of the bootstrap
_WINDOW = 10  # steps of the moving average over training metrics


class Estimate(NamedTuple):
  """A number and its 95% interval."""

  value: float
  low: float
  high: float


class Comparison(NamedTuple):
  """Metrics of the held-out pairs at two steps of a run; tuples are (before, after)."""

  pairs: int
  steps: tuple[int, int]
  accuracy: tuple[Estimate, Estimate]
  accuracy_change: Estimate
  gained: int  # pairs ranked correctly only after
  lost: int  # pairs ranked correctly only before
  accuracy_p: float  # p value of McNemar's exact test
  margin: tuple[Estimate, Estimate]
  margin_change: Estimate
  logps_chosen: tuple[float, float]  # mean per token
  logps_rejected: tuple[float, float]


def share(count: int, total: int) -> Estimate:
  """Returns a proportion with its Wilson interval."""
  interval = stats.binomtest(count, total).proportion_ci(method="wilson")
  return Estimate(count / total, float(interval.low), float(interval.high))


def mean(values: np.ndarray) -> Estimate:
  """Returns the mean with its percentile bootstrap interval, which is deterministic.

  Args:
    values: float [n]; for the interval of a change, the difference of each pair.
  """
  drawn = np.random.default_rng(0).integers(len(values), size=(_RESAMPLES, len(values)))
  low, high = np.percentile(values[drawn].mean(axis=1), [2.5, 97.5])
  return Estimate(float(np.mean(values)), float(low), float(high))


def read_evaluations(workdir: pathlib.Path) -> dict[int, list[dict[str, Any]]]:
  """Reads the rows per held-out pair of all evaluations, by step.

  Raises:
    UserError: the workdir has fewer than two evaluations.
  """
  found = {
    int(path.parent.name.removeprefix("step_")): _rows(path)
    for path in sorted(workdir.glob("evaluations/step_*/pairs.jsonl"))
  }
  if len(found) < 2:
    raise UserError(
      f"--workdir={workdir} holds {len(found)} evaluation(s), and a comparison needs two; start "
      "the run with --config.evaluate.at_start=True"
    )
  return found


def compare_pairs(
  before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]], steps: tuple[int, int]
) -> Comparison:
  """Compares the rows of two evaluations of the same pairs in the same order."""
  old, new = _values(before, "rewards/margins"), _values(after, "rewards/margins")
  was_right, is_right = old > 0, new > 0
  gained, lost = int(np.sum(is_right & ~was_right)), int(np.sum(was_right & ~is_right))

  def means(name: str) -> tuple[float, float]:
    return float(np.mean(_values(before, name))), float(np.mean(_values(after, name)))

  return Comparison(
    pairs=len(before),
    steps=steps,
    accuracy=(_accuracy(old), _accuracy(new)),
    accuracy_change=mean(is_right.astype(float) - was_right),
    gained=gained,
    lost=lost,
    accuracy_p=float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0,
    margin=(mean(old), mean(new)),
    margin_change=mean(new - old),
    logps_chosen=means("logps/chosen"),
    logps_rejected=means("logps/rejected"),
  )


def _values(rows: Sequence[dict[str, Any]], name: str) -> np.ndarray:
  return np.array([row[name] for row in rows])


def _accuracy(margins: np.ndarray) -> Estimate:
  return share(int(np.sum(margins > 0)), len(margins))


def compare(evaluations: dict[int, list[dict[str, Any]]]) -> Comparison:
  """Compares the first evaluation with the last."""
  first, last = min(evaluations), max(evaluations)
  return compare_pairs(evaluations[first], evaluations[last], (first, last))


def percent(e: Estimate, form: str = ".0f") -> str:
  """Formats as "51% [44, 58]"."""
  return f"{100 * e.value:{form}}% [{100 * e.low:{form}}, {100 * e.high:{form}}]"


def number(e: Estimate, form: str = ".2f") -> str:
  """Formats as "0.12 [0.05, 0.19]"."""
  return f"{e.value:{form}} [{e.low:{form}}, {e.high:{form}}]"


def comparison_table(found: Comparison) -> Table:
  """Returns the comparison as a table for the terminal."""
  table = Table(
    title=f"{found.pairs} held-out pairs, with 95% intervals in brackets",
    title_justify="left",
    show_edge=False,
    pad_edge=False,
  )
  for name in ("", f"before (step {found.steps[0]})", f"after (step {found.steps[1]})", "change"):
    table.add_column(name)
  change = percent(found.accuracy_change, "+.0f")
  table.add_row("accuracy", *map(percent, found.accuracy), change)
  change = number(found.margin_change, "+.2f")
  table.add_row("reward margin", *map(number, found.margin), change)
  for name, (before, after) in (
    ("log p, chosen", found.logps_chosen),
    ("log p, rejected", found.logps_rejected),
  ):
    table.add_row(name, f"{before:.3f}", f"{after:.3f}", f"{after - before:+.3f}")
  table.caption = (
    f"{found.gained} pairs gained and {found.lost} lost: p = {found.accuracy_p:.2g} (McNemar); "
    "log p: per token"
  )
  table.caption_justify = "left"
  return table


def evaluation_panels(
  workdir: pathlib.Path, evaluations: dict[int, list[dict[str, Any]]]
) -> list[Panel]:
  """Returns charts of accuracy and reward margin by step."""
  margins = {step: _values(rows, "rewards/margins") for step, rows in evaluations.items()}
  accuracies = {step: _accuracy(m) for step, m in margins.items()}
  train = [row for row in _rows(workdir / "metrics.jsonl") if row["mode"] == "train"]
  return [
    Panel(
      "preference accuracy, %",
      [estimates("held out", {step: [100 * x for x in e] for step, e in accuracies.items()})],
      (0.0, 100.0),
      50.0,
    ),
    Panel(
      "reward margin",
      [
        estimates("held out", {step: mean(m) for step, m in margins.items()}),
        _smoothed("training", train, "rewards/margins"),
      ],
      None,
      0.0,
    ),
  ]


def estimates(label: str, by_step: dict[int, Sequence[float]]) -> Series:
  """Returns a series with bands from (value, low, high) by step."""
  return Series(
    label,
    [(step, e[0]) for step, e in by_step.items()],
    [(e[1], e[2]) for e in by_step.values()],
  )


def _smoothed(label: str, rows: list[dict[str, Any]], name: str) -> Series:
  width = min(_WINDOW, len(rows))
  means = np.convolve([row[name] for row in rows], np.ones(width) / width, "valid")
  steps = [row["step"] for row in rows][width - 1 :]
  return Series(f"{label}, mean of {width} steps", list(zip(steps, means, strict=True)))


def _rows(path: pathlib.Path) -> list[dict[str, Any]]:
  try:
    return [json.loads(line) for line in path.read_text().splitlines()]
  except (OSError, ValueError) as e:
    raise UserError(f"{path} cannot be read ({e}); is the run complete?") from e


def write_text(path: str | pathlib.Path, text: str) -> None:
  """Writes an output file named by the user.

  Raises:
    UserError: the file cannot be written.
  """
  try:
    plain(path).write_text(text)
  except OSError as e:
    raise UserError(f"{path} cannot be written ({e.strerror}); choose another file") from e
