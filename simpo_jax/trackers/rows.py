"""What trackers are told: a row of metrics.jsonl, with what belongs to it."""

import json
import numbers
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from simpo_jax import storage
from simpo_jax.config import flatten
from simpo_jax.workdir.files import samples_folder

_GROUPS = {"evaluate": "eval"}  # where a mode's group has another name than the mode
_SAMPLE = (
  "prompt_index",
  "sample_index",
  "prompt",
  "generated_text",
  "generated_token_count",
  "finish_reason",
  "logprob_sum",
)


class Entry(NamedTuple):
  """One row and its company.

  Attributes:
    number: of its line in metrics.jsonl, from 1.
    row: the line.
    values: of each pair or answer, by name: what histograms are made of.
    samples: rows of samples.
  """

  number: int
  row: dict[str, Any]
  values: dict[str, np.ndarray] = {}
  samples: tuple[dict[str, Any], ...] = ()

  @property
  def scalars(self) -> dict[str, float]:
    """Every number of the row under its tag, such as "train/loss" or "eval/rewards/margins"."""
    rest = {name: value for name, value in self.row.items() if name not in ("step", "mode")}
    return {
      tag(self.row, name): float(value)
      for name, value in flatten(rest).items()
      if isinstance(value, numbers.Real)
    }

  @property
  def histograms(self) -> dict[str, np.ndarray]:
    """The values under their tags, float64; none without values."""
    arrays = {tag(self.row, name): np.asarray(v, np.float64) for name, v in self.values.items()}
    return {name: array for name, array in arrays.items() if array.size}


def group(row: dict[str, Any]) -> str:
  """The first part of the tags of a row."""
  mode: str = row["mode"]
  return _GROUPS.get(mode, mode)


def tag(row: dict[str, Any], name: str) -> str:
  """A name in the row's group, of characters that every tracker takes."""
  return f"{group(row)}/{re.sub(r'[^A-Za-z0-9_./-]', '_', name)}"


def of_generation(summary: dict[str, Any]) -> tuple[dict, dict[str, np.ndarray], list]:
  """A generation's summary.json as row, values and samples of an entry."""
  rest = {k: v for k, v in summary.items() if k not in ("samples", "results")}
  lengths = [result["generated_token_count"] for result in summary["results"]]
  samples = [{name: row[name] for name in _SAMPLE} for row in summary["samples"]]
  row = {"step": summary["step"], "mode": "generate", **rest}
  return row, {"answers/tokens": np.asarray(lengths)}, samples


def rows_of(folder: storage.Path, size: int) -> Iterator[tuple[int, dict[str, Any]]]:
  """Numbers and rows in the first `size` bytes of metrics.jsonl."""
  if not size:
    return
  with (folder / "metrics.jsonl").open("rb") as f:
    for number, line in enumerate(f, start=1):
      yield number, json.loads(line)
      size -= len(line)
      if size <= 0:
        return


def entries_of(folder: storage.Path, size: int, after: int) -> Iterator[Entry]:
  """The rows beyond number `after` in the first `size` bytes of metrics.jsonl.

  Generations come with all that summary.json has of them; a step's values per pair are
  in no file.
  """
  for number, row in rows_of(folder, size):
    if number <= after:
      continue
    summary = samples_folder(folder, row["step"]) / "summary.json"
    if row["mode"] == "generate" and summary.exists():
      _, values, samples = of_generation(json.loads(summary.read_text()))
      yield Entry(number, row, values, tuple(samples))
    else:
      yield Entry(number, row)
