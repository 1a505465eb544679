"""A workdir's files as one plain dict, whatever state the run is in; and its texts, packed.

A run in progress, a killed one, missing or half-written files: what cannot be read is left out
and noted.
"""

import datetime
import json
import math
from typing import Any, NamedTuple

import numpy as np

from simpo_jax import storage
from simpo_jax.distributed.chips import chip_of
from simpo_jax.errors import UserError
from simpo_jax.report import least_times
from simpo_jax.report.evidence import Evidence
from simpo_jax.report.generations import generation_figures, index_of, read_generations, texts_of
from simpo_jax.report.health_checks import check_health
from simpo_jax.report.samples import Generation, look, part_size, read_lines
from simpo_jax.report.timeline import timeline
from simpo_jax.storage.paths import brief

_POINTS = 2000  # of a curve
_MAIN = ("run.json", "config.json", "metrics.jsonl", "samples")
# Columns that are text or lists, or belong to a row's place.
_NO_CURVES = ("mode", "step", "pairs", "finish_reasons", "bad_steps")
_RECORD = (
  "status", "error", "compiles", "executables", "devices", "processes", "versions", "data", "pairs",
  "program", "peak_bytes", "memory", "peak_rss_bytes", "model", "began_with", "resumes", "hosts",
)  # fmt: skip


class Collected(NamedTuple):
  """A run's page data, which is JSON, and the packed texts that it names."""

  run: dict[str, Any]
  index: dict[str, Any]  # figures of every answer, for the list of prompts
  parts: dict[tuple[int, int], bytes]  # by generation and part
  prompt_parts: dict[int, bytes]


def collect(
  folder: storage.Path, max_bytes: int, known: dict[Any, Generation] | None = None
) -> Collected:
  """Reads a workdir.

  Args:
    folder: the workdir.
    max_bytes: packed text that the report takes.
    known: generations that an earlier call has read; then holds those of this call.

  Raises:
    UserError: it is no workdir.
  """
  if not any((folder / name).exists() for name in _MAIN):
    raise UserError(
      f"{brief(folder)} is no workdir: it has none of {', '.join(_MAIN)}; name the folder of a run"
    )
  notes: list[str] = []
  record, config = _object(folder / "run.json", notes), _object(folder / "config.json", notes)
  failure = (folder / "failure.json").exists() and _object(folder / "failure.json", notes)
  rows = _rows(folder / "metrics.jsonl", notes)
  generations = read_generations(folder, config, max_bytes, {} if known is None else known, notes)
  figures = [
    generation_figures(g, _row(rows["generate"], g.step), record, config) for g in generations
  ]
  train, held_out = _columns(rows["train"]), _columns(rows["evaluate"])
  bad_steps = [{"step": r["step"], "pairs": r.get("pairs", [])} for r in rows["bad_step"]]
  evidence = Evidence(
    train, held_out, figures, [b["step"] for b in bad_steps], record, config, failure or None
  )
  parts, prompt_parts, texts = texts_of(generations, part_size(config), max_bytes)
  run = {
    "name": str(config.get("name") or folder.name),
    "folder": str(folder),
    "record": {name: record[name] for name in _RECORD if name in record},
    "config": config,
    "written": _when(folder),
    "attempts": len(list((folder / "attempts").glob("[0-9]*"))),
    "failure": failure or None,
    "notes": notes,
    "chip": _chip(record),
    "rates": least_times.rates_of(record),
    "curves": {
      "train": _thin(train),
      "evaluate": _thin(held_out),
      "generate": _thin(_columns(rows["generate"])),
    },
    "floors": _floors(record, config, rows["train"]),
    "bad_steps": bad_steps,
    "timeline": timeline(record, train["step"][0] if train["step"] else 1),
    "generations": figures,
    "samples": texts,
    "signs": [finding._asdict() for finding in check_health(evidence)],
  }
  return Collected(plain(run), plain(index_of(generations)), parts, prompt_parts)


def _object(path: storage.Path, notes: list[str]) -> dict[str, Any]:
  try:
    value = json.loads(path.read_text())
    if isinstance(value, dict):
      return value
    notes.append(f"{path.name} holds no JSON object")
  except FileNotFoundError:
    notes.append(f"{path.name} is not there (yet)")
  except OSError as e:
    notes.append(f"{path.name} cannot be read ({e.strerror or e})")
  except ValueError:
    notes.append(f"{path.name} is damaged")
  return {}


def _rows(path: storage.Path, notes: list[str]) -> dict[str, list[dict[str, Any]]]:
  """The rows of metrics.jsonl by mode, in order of step; of one step and mode the last."""
  found: dict[str, dict[int, dict]] = {m: {} for m in ("train", "evaluate", "generate", "bad_step")}
  if not path.exists():
    notes.append(f"{path.name} is not there (yet)")
    return {mode: [] for mode in found}
  for row in read_lines(path, notes):
    mode, step = row.get("mode"), row.get("step")
    if isinstance(mode, str) and mode in found and isinstance(step, int):
      found[mode][step] = row
  return {mode: [rows[step] for step in sorted(rows)] for mode, rows in found.items()}


def _row(rows: list[dict[str, Any]], step: int) -> dict[str, Any]:
  return next((row for row in rows if row["step"] == step), {})


def _columns(rows: list[dict[str, Any]]) -> dict[str, list]:
  """{"step": [...], "loss": [...], ...}, with None where a row has no such number."""
  names = dict.fromkeys(
    name
    for row in rows
    for name, value in row.items()
    if name not in _NO_CURVES and isinstance(value, (int, float)) and not isinstance(value, bool)
  )
  number = lambda v: v if isinstance(v, (int, float)) else None  # noqa: E731
  columns = {name: [number(row.get(name)) for row in rows] for name in names}
  return {"step": [row["step"] for row in rows], **columns}


def _thin(columns: dict[str, list]) -> dict[str, Any]:
  """At most so many points: means over neighbors, the step that of the last of them.

  Then `NAME/low` and `NAME/high` are the extremes, and `each` says how many steps are one point.
  """
  count = len(columns["step"])
  each = -(-count // _POINTS)
  if each <= 1:
    return columns
  out = {"step": [columns["step"][min(i + each, count) - 1] for i in range(0, count, each)]}
  for name, values in columns.items():
    if name == "step":
      continue
    padded = np.full(-(-count // each) * each, np.nan)
    padded[:count] = [math.nan if v is None else v for v in values]
    blocks = np.ma.masked_invalid(padded.reshape(-1, each))
    for suffix, reduced in (
      ("", blocks.mean(1)),
      ("/low", blocks.min(1)),
      ("/high", blocks.max(1)),
    ):
      out[name + suffix] = reduced.filled(np.nan).tolist()
  return {**out, "each": each}


def _floors(
  record: dict[str, Any], config: dict[str, Any], rows: list[dict[str, Any]]
) -> dict[str, Any]:
  """The training steps' least and actual seconds, over all but the first, which is slower."""
  pairs = [(least_times.train_seconds(record, config, r), r.get("step_seconds")) for r in rows]
  pairs = [(a, b) for a, b in pairs[len(pairs) > 1 :] if a and b]
  if not pairs:
    return {}
  least, took = (sum(values) for values in zip(*pairs, strict=True))
  return {"train_floor": least, "train_seconds": took, "steps": len(pairs)}


def _chip(record: dict[str, Any]) -> dict[str, Any] | None:
  chip = chip_of(record.get("devices", {}).get("kind", ""))
  return {"name": chip.name, "hbm_bytes": chip.hbm_bytes} if chip else None


def _when(folder: storage.Path) -> str | None:
  """When the run last wrote its run.json."""
  try:
    _, seconds = look(folder / "run.json")
  except OSError:
    return None
  return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat("T", "seconds")


def plain(value: Any) -> Any:
  """Strict JSON: numbers that are not finite are null."""
  if isinstance(value, dict):
    return {str(k): plain(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [plain(v) for v in value]
  if isinstance(value, float) and not math.isfinite(value):
    return None
  return value
