"""What trackers receive: rows of metrics.jsonl with their histograms and samples."""

import json
import numbers
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from simpo_jax import storage
from simpo_jax.config import flatten
from simpo_jax.workdir.files import samples_folder

_GROUPS = {"evaluate": "eval"}  # modes whose tags begin with another name
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
  """One row of metrics.jsonl with its histograms and samples.

  Attributes:
    number: line number in metrics.jsonl, from 1.
    row: the parsed line.
    values: values per pair or answer for histograms, by name; arrays of shape [n].
    samples: sample rows.
  """

  number: int
  row: dict[str, Any]
  values: dict[str, np.ndarray] = {}
  samples: tuple[dict[str, Any], ...] = ()

  @property
  def scalars(self) -> dict[str, float]:
    """All numbers of the row by tag, such as "train/loss" or "eval/rewards/margins"."""
    rest = {name: value for name, value in self.row.items() if name not in ("step", "mode")}
    return {
      tag(self.row, name): float(value)
      for name, value in flatten(rest).items()
      if isinstance(value, numbers.Real)
    }

  @property
  def histograms(self) -> dict[str, np.ndarray]:
    """Non-empty arrays of `values` as float64, by tag."""
    arrays = {tag(self.row, name): np.asarray(v, np.float64) for name, v in self.values.items()}
    return {name: array for name, array in arrays.items() if array.size}


def group(row: dict[str, Any]) -> str:
  """Returns the first part of the row's tags, such as "train" or "eval"."""
  mode: str = row["mode"]
  return _GROUPS.get(mode, mode)


def tag(row: dict[str, Any], name: str) -> str:
  """Returns a name prefixed with the row's group, in characters that every tracker accepts."""
  return f"{group(row)}/{re.sub(r'[^A-Za-z0-9_./-]', '_', name)}"


def generation_entry(summary: dict[str, Any]) -> tuple[dict, dict[str, np.ndarray], list]:
  """Converts a generation's summary.json to the row, values and samples of an `Entry`."""
  rest = {k: v for k, v in summary.items() if k not in ("samples", "results")}
  lengths = [result["generated_token_count"] for result in summary["results"]]
  samples = [{name: row[name] for name in _SAMPLE} for row in summary["samples"]]
  row = {"step": summary["step"], "mode": "generate", **rest}
  return row, {"answers/tokens": np.asarray(lengths)}, samples


def read_rows(folder: storage.Path, size: int) -> Iterator[tuple[int, dict[str, Any]]]:
  """Yields (line number, row) for the first `size` bytes of metrics.jsonl."""
  if not size:
    return
  with (folder / "metrics.jsonl").open("rb") as f:
    for number, line in enumerate(f, start=1):
      yield number, json.loads(line)
      size -= len(line)
      if size <= 0:
        return


def read_entries(folder: storage.Path, size: int, after: int) -> Iterator[Entry]:
  """Yields the rows after line number `after` in the first `size` bytes of metrics.jsonl.

  Values and samples of generations are read from summary.json. Values per training pair are not
  stored in any file, so those entries have none.
  """
  for number, row in read_rows(folder, size):
    if number <= after:
      continue
    summary = samples_folder(folder, row["step"]) / "summary.json"
    if row["mode"] == "generate" and summary.exists():
      _, values, samples = generation_entry(json.loads(summary.read_text()))
      yield Entry(number, row, values, tuple(samples))
    else:
      yield Entry(number, row)
