"""What a health check looks at, and how it judges a value or a trend."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

STATES = ("warning", "watch", "unknown", "ok")
FEW_STEPS = 20  # steps below which a trend of the training batches is no trend
PART = 10  # a trend compares the first and the last such part of the steps
TOO_FEW = f"too few steps to tell: it takes {FEW_STEPS}, or two evaluations"


class Finding(NamedTuple):
  """One sign."""

  key: str
  title: str
  state: str  # of STATES
  value: str  # what was found
  limits: str  # from where on it is what it is
  meaning: str  # how the number is computed
  advice: str


class Evidence(NamedTuple):
  """What signs are computed from.

  Attributes:
    train: columns of metrics.jsonl's training rows, by name.
    held_out: the same of its evaluations.
    generations: figures, in order of step; see `generations.generation_figures`.
    bad_steps: training steps that were left out.
    record: run.json.
  """

  train: dict[str, list]
  held_out: dict[str, list]
  generations: list[dict[str, Any]]
  bad_steps: list[int]
  record: dict[str, Any]
  config: dict[str, Any]
  failure: dict[str, Any] | None


def judge(value: float | None, watch: float, warning: float) -> str:
  """The state of a number that should be small."""
  if value is None or not math.isfinite(value):
    return "unknown"
  return "warning" if value >= warning else "watch" if value >= watch else "ok"


class Trend(NamedTuple):
  """How a figure has moved: its first and last values, the highest, and its noise."""

  first: float
  last: float
  best: float  # the largest
  noise: float  # a difference below this says nothing
  what: str  # the pairs that it is of


def trend_of(e: Evidence, name: str) -> Trend | None:
  """How a metric went; None if there are too few values.

  Held-out pairs are the same each time. Without two evaluations, these are means over a
  tenth of the training steps, whose pairs differ; their noise is three standard errors of a
  difference.
  """
  held_out = numbers(e.held_out.get(name, ()))
  if len(held_out) >= 2:
    return Trend(held_out[0], held_out[-1], max(held_out), 0.0, "held-out pairs")
  values = numbers(e.train.get(name, ()))
  if len(values) < FEW_STEPS:
    return None
  size = max(FEW_STEPS // 4, len(values) // PART)
  means = np.convolve(values, np.ones(size) / size, "valid")
  noise = 3 * float(np.std(np.diff(values))) / math.sqrt(size)
  what = f"training pairs, means of {size} steps"
  return Trend(float(means[0]), float(means[-1]), float(means.max()), noise, what)


def numbers(values: Sequence) -> list[float]:
  """Those of the values that are finite numbers."""
  return [v for v in values if isinstance(v, (int, float)) and math.isfinite(v)]
