"""Reads a workdir's files into the JSON data of the report page, plus compressed texts.

The run may be in progress or killed, and files may be missing or truncated: whatever cannot be
read is left out and listed in the report's notes.
"""

import datetime
import json
import math
from typing import Any, NamedTuple

import numpy as np

from simpo_jax import storage
from simpo_jax.arith import ceil_div, round_up
from simpo_jax.distributed.chips import chip_of
from simpo_jax.errors import UserError
from simpo_jax.report import least_times
from simpo_jax.report.evidence import Evidence
from simpo_jax.report.generations import (
  answer_columns,
  generation_figures,
  read_generations,
  select_texts,
)
from simpo_jax.report.health_checks import check_health
from simpo_jax.report.samples import Generation, part_size, read_lines, size_and_mtime
from simpo_jax.report.timeline import timeline
from simpo_jax.storage.paths import brief

_MAX_POINTS = 2000  # per curve
_RUN_FILES = ("run.json", "config.json", "metrics.jsonl", "samples")
# Fields of metrics.jsonl that are not drawn as curves.
_NOT_PLOTTED = ("mode", "step", "pairs", "finish_reasons", "bad_steps")
_RECORD_FIELDS = (
  "status", "error", "compiles", "executables", "devices", "processes", "versions", "data", "pairs",
  "program", "peak_bytes", "memory", "peak_rss_bytes", "model", "began_with", "resumes", "hosts",
)  # fmt: skip


class Collected(NamedTuple):
  """The report data of one run."""

  run: dict[str, Any]  # JSON-serializable
  index: dict[str, Any]  # statistics of every answer, for the list of prompts
  parts: dict[tuple[int, int], bytes]  # compressed texts of answers by (generation, part)
  prompt_parts: dict[int, bytes]  # compressed texts of prompts by part


def collect(
  folder: storage.Path, max_bytes: int, known: dict[Any, Generation] | None = None
) -> Collected:
  """Reads a workdir.

  Args:
    folder: the workdir.
    max_bytes: limit for the compressed texts, in bytes.
    known: cache of generations between calls; updated in place.

  Raises:
    UserError: the folder is not a workdir.
  """
  if not any((folder / name).exists() for name in _RUN_FILES):
    raise UserError(
      f"{brief(folder)} is not a workdir: it has none of {', '.join(_RUN_FILES)}; name the "
      "folder of a run"
    )
  notes: list[str] = []
  record = _read_object(folder / "run.json", notes)
  config = _read_object(folder / "config.json", notes)
  failure = (folder / "failure.json").exists() and _read_object(folder / "failure.json", notes)
  rows = _read_metrics(folder / "metrics.jsonl", notes)
  generations = read_generations(folder, config, max_bytes, {} if known is None else known, notes)
  figures = [
    generation_figures(g, _row_of_step(rows["generate"], g.step), record, config)
    for g in generations
  ]
  train, held_out = _columns(rows["train"]), _columns(rows["evaluate"])
  bad_steps = [{"step": r["step"], "pairs": r.get("pairs", [])} for r in rows["bad_step"]]
  evidence = Evidence(
    train, held_out, figures, [b["step"] for b in bad_steps], record, config, failure or None
  )
  parts, prompt_parts, texts = select_texts(generations, part_size(config), max_bytes)
  run = {
    "name": str(config.get("name") or folder.name),
    "folder": str(folder),
    "record": {name: record[name] for name in _RECORD_FIELDS if name in record},
    "config": config,
    "written": _last_written(folder),
    "attempts": len(list((folder / "attempts").glob("[0-9]*"))),
    "failure": failure or None,
    "notes": notes,
    "chip": _chip(record),
    "rates": least_times.device_rates(record),
    "curves": {
      "train": _downsample(train),
      "evaluate": _downsample(held_out),
      "generate": _downsample(_columns(rows["generate"])),
    },
    "floors": _step_times(record, config, rows["train"]),
    "bad_steps": bad_steps,
    "timeline": timeline(record, train["step"][0] if train["step"] else 1),
    "generations": figures,
    "samples": texts,
    "signs": [finding._asdict() for finding in check_health(evidence)],
  }
  return Collected(strict_json(run), strict_json(answer_columns(generations)), parts, prompt_parts)


def _read_object(path: storage.Path, notes: list[str]) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text())
    if isinstance(value, dict):
      return value
    notes.append(f"{path.name} is not a JSON object")
  except FileNotFoundError:
    notes.append(f"{path.name} is not there (yet)")
  except OSError as e:
    notes.append(f"{path.name} cannot be read ({e.strerror or e})")
  except ValueError:
    notes.append(f"{path.name} is damaged")
  return {}


def _read_metrics(path: storage.Path, notes: list[str]) -> dict[str, list[dict[str, Any]]]:
  """Reads metrics.jsonl: rows by mode, in step order; of duplicates the last one."""
  found: dict[str, dict[int, dict]] = {m: {} for m in ("train", "evaluate", "generate", "bad_step")}
  if not path.exists():
    notes.append(f"{path.name} is not there (yet)")
    return {mode: [] for mode in found}
  for row in read_lines(path, notes):
    mode, step = row.get("mode"), row.get("step")
    if isinstance(mode, str) and mode in found and isinstance(step, int):
      found[mode][step] = row
  return {mode: [rows[step] for step in sorted(rows)] for mode, rows in found.items()}


def _row_of_step(rows: list[dict[str, Any]], step: int) -> dict[str, Any]:
  return next((row for row in rows if row["step"] == step), {})


def _columns(rows: list[dict[str, Any]]) -> dict[str, list]:
  """Returns {"step": [...], "loss": [...], ...}; None where a row lacks the number."""
  names = dict.fromkeys(
    name
    for row in rows
    for name, value in row.items()
    if name not in _NOT_PLOTTED and isinstance(value, (int, float)) and not isinstance(value, bool)
  )
  number = lambda v: v if isinstance(v, (int, float)) else None  # noqa: E731
  columns = {name: [number(row.get(name)) for row in rows] for name in names}
  return {"step": [row["step"] for row in rows], **columns}


def _downsample(columns: dict[str, list]) -> dict[str, Any]:
  """Limits curves to `_MAX_POINTS` by averaging blocks of rows, each plotted at its last step.

  If blocks have several rows, adds the extremes as `NAME/low` and `NAME/high`, and the rows per
  block as `each`.
  """
  count = len(columns["step"])
  each = ceil_div(count, _MAX_POINTS)
  if each <= 1:
    return columns
  out = {"step": [columns["step"][min(i + each, count) - 1] for i in range(0, count, each)]}
  for name, values in columns.items():
    if name == "step":
      continue
    padded = np.full(round_up(count, each), np.nan)
    padded[:count] = [math.nan if v is None else v for v in values]
    blocks = np.ma.masked_invalid(padded.reshape(-1, each))
    for suffix, reduced in (
      ("", blocks.mean(1)),
      ("/low", blocks.min(1)),
      ("/high", blocks.max(1)),
    ):
      out[name + suffix] = reduced.filled(np.nan).tolist()
  return {**out, "each": each}


def _step_times(
  record: dict[str, Any], config: dict[str, Any], rows: list[dict[str, Any]]
) -> dict[str, Any]:
  """Sums the roofline and the measured seconds of training steps except the first, slower one."""
  pairs = [(least_times.train_seconds(record, config, r), r.get("step_seconds")) for r in rows]
  pairs = [(a, b) for a, b in pairs[len(pairs) > 1 :] if a and b]
  if not pairs:
    return {}
  least, took = (sum(values) for values in zip(*pairs, strict=True))
  return {"train_floor": least, "train_seconds": took, "steps": len(pairs)}


def _chip(record: dict[str, Any]) -> dict[str, Any] | None:
  chip = chip_of(record.get("devices", {}).get("kind", ""))
  return {"name": chip.name, "hbm_bytes": chip.hbm_bytes} if chip else None


def _last_written(folder: storage.Path) -> str | None:
  """Returns the modification time of run.json in ISO format."""
  try:
    _, seconds = size_and_mtime(folder / "run.json")
  except OSError:
    return None
  return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat("T", "seconds")


def strict_json(value: Any) -> Any:
  """Makes a value valid as strict JSON: non-finite numbers become None."""
  if isinstance(value, dict):
    return {str(k): strict_json(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [strict_json(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
