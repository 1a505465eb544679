"""Inputs and results of the health checks, and how they rate values and trends."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

STATES = ("warning", "watch", "unknown", "ok")
MIN_STEPS = 20  # for a trend of training metrics
_TREND_PARTS = 10  # a trend compares the first and the last tenth of the steps
TOO_FEW = f"too few steps: needs {MIN_STEPS}, or two evaluations"


class Finding(NamedTuple):
  """The result of one health check."""

  key: str
  title: str
  state: str  # one of STATES
  value: str  # the measured value, as text
  limits: str  # the thresholds of the states
  meaning: str  # how the number is computed
  advice: str  # what to do about it


class Evidence(NamedTuple):
  """Data of a run that the health checks read.

  Attributes:
    train: columns of the training rows of metrics.jsonl, by name.
    held_out: columns of the evaluation rows.
    generations: statistics in step order; see `generations.generation_figures`.
    bad_steps: training steps whose update was skipped.
    record: contents of run.json.
    config: contents of config.json.
    failure: contents of failure.json, if it exists.
  """

  train: dict[str, list]
  held_out: dict[str, list]
  generations: list[dict[str, Any]]
  bad_steps: list[int]
  record: dict[str, Any]
  config: dict[str, Any]
  failure: dict[str, Any] | None


def rate(value: float | None, watch: float, warning: float) -> str:
  """Rates a number that should be small by two thresholds."""
  if value is None or not math.isfinite(value):
    return "unknown"
  return "warning" if value >= warning else "watch" if value >= watch else "ok"


class Trend(NamedTuple):
  """How a metric changed over a run."""

  first: float
  last: float
  best: float  # the maximum
  noise: float  # smaller differences are not significant
  what: str  # which pairs it was computed on, as text


def trend_of(e: Evidence, name: str) -> Trend | None:
  """Returns the trend of a metric; None if there are too few values.

  Uses the evaluations if there are two: their pairs are the same each time, so they have no
  noise. Otherwise compares moving averages over a tenth of the training steps; as their pairs
  differ, the noise is three standard errors of a difference.
  """
  held_out = finite_numbers(e.held_out.get(name, ()))
  if len(held_out) >= 2:
    return Trend(held_out[0], held_out[-1], max(held_out), 0.0, "held-out pairs")
  values = finite_numbers(e.train.get(name, ()))
  if len(values) < MIN_STEPS:
    return None
  size = max(MIN_STEPS // 4, len(values) // _TREND_PARTS)
  means = np.convolve(values, np.ones(size) / size, "valid")
  noise = 3 * float(np.std(np.diff(values))) / math.sqrt(size)
  what = f"training pairs, means of {size} steps"
  return Trend(float(means[0]), float(means[-1]), float(means.max()), noise, what)


def finite_numbers(values: Sequence) -> list[float]:
  """Returns the values that are finite numbers."""
  return [v for v in values if isinstance(v, (int, float)) and math.isfinite(v)]
