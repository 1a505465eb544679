"""A workdir's files as one plain dict, whatever state the run is in; and its texts, packed.

A run in progress, a killed one, missing or half-written files: what cannot be read is left out
and noted.
"""

import datetime
import json
import math
from typing import Any, NamedTuple

import numpy as np

from simpo_jax.chips import chip_of
from simpo_jax.errors import UserError
from simpo_jax.report import floor
from simpo_jax.report.samples import (
  FINISH,
  Answers,
  Generation,
  kept_parts,
  part_size,
  read_generation,
  read_lines,
)
from simpo_jax.report.signs import Evidence, signs

_POINTS = 2000  # of a curve, and spans of the timeline
_BINS = 24  # of a histogram of lengths
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


def collect(folder, max_bytes: int, known: dict[Any, Generation] | None = None) -> Collected:
  """Reads a workdir.

  Args:
    folder: the workdir, a path.
    max_bytes: packed text that the report takes.
    known: generations that an earlier call has read; then holds those of this call.

  Raises:
    UserError: it is no workdir.
  """
  if not any((folder / name).exists() for name in _MAIN):
    raise UserError(
      f"{folder} is no workdir: it has none of {', '.join(_MAIN)}; name the folder of a run"
    )
  notes: list[str] = []
  record, config = _object(folder / "run.json", notes), _object(folder / "config.json", notes)
  failure = (folder / "failure.json").exists() and _object(folder / "failure.json", notes)
  rows = _rows(folder / "metrics.jsonl", notes)
  generations = _generations(folder, config, max_bytes, {} if known is None else known, notes)
  figures = [
    generation_figures(g, _row(rows["generate"], g.step), record, config) for g in generations
  ]
  train, held_out = _columns(rows["train"]), _columns(rows["evaluate"])
  bad_steps = [{"step": r["step"], "pairs": r.get("pairs", [])} for r in rows["bad_step"]]
  evidence = Evidence(
    train, held_out, figures, [b["step"] for b in bad_steps], record, config, failure or None
  )
  parts, prompt_parts, texts = _texts(generations, part_size(config), max_bytes)
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
    "rates": floor.rates_of(record),
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
    "signs": [sign._asdict() for sign in signs(evidence)],
  }
  return Collected(plain(run), plain(_index(generations)), parts, prompt_parts)


def _object(path, notes: list[str]) -> dict[str, Any]:
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


def _rows(path, notes: list[str]) -> dict[str, list[dict[str, Any]]]:
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


def _thin(columns: dict[str, list]) -> dict[str, list]:
  """At most so many points: means over neighbours, the step that of the last of them.

  Then `NAME/low` and `NAME/high` are the extremes, and `each` says how many steps are one point.
  """
  count = len(columns["step"])
  each = -(-count // _POINTS)
  if each <= 1:
    return columns
  out: dict[str, Any] = {
    "step": [columns["step"][min(i + each, count) - 1] for i in range(0, count, each)]
  }
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


def _generations(folder, config, max_bytes: int, known: dict, notes) -> list[Generation]:
  """Every generation in order of step, read anew only where its files have changed."""
  folders = sorted(p for p in (folder / "samples").glob("step_*") if p.name[5:].isdigit())
  size, most, out = part_size(config), 2**31, []
  now: dict[Any, Generation] = {}
  sizes: dict[int, dict[int, int]] = {}
  for path in folders:
    try:
      files = tuple((f.name, *_look(f)) for f in sorted(path.glob("host_*.jsonl")))
    except OSError as e:  # a run that goes on again removes what it will write anew
      notes.append(f"samples/{path.name} cannot be read ({e.strerror or e})")
      continue
    key = (str(path), size, max_bytes, files)
    read = known.get(key) or read_generation(path, size, most)
    if not len(read.answers.prompt):
      continue
    now[key] = read
    out.append(read)
    # The more generations, the fewer parts of each: what is beyond them need not be packed.
    sizes[read.step] = {part: len(text) for part, text in read.parts.items()}
    most = max(
      (1 + max(parts, default=0) for parts in kept_parts(sizes, max_bytes).values()), default=1
    )
  known.clear()
  for key, g in now.items():
    texts = {part: text for part, text in g.parts.items() if part < most}
    known[key] = g._replace(parts=texts)
  for g in out:
    if g.hosts[0] < g.hosts[1]:
      notes.append(
        f"samples of step {g.step}: files of {g.hosts[0]} of {g.hosts[1]} hosts are in this folder"
      )
    if g.unreadable:
      notes.append(f"samples of step {g.step}: {g.unreadable} lines are no samples")
  return out


def _look(path) -> tuple[int, float]:
  """Size and time of a file, which a bucket's path gives under other names."""
  found = path.stat()
  if hasattr(found, "st_size"):
    return found.st_size, found.st_mtime
  return found.length, found.mtime


def generation_figures(
  g: Generation, row: dict[str, Any], record: dict[str, Any], config: dict[str, Any]
) -> dict[str, Any]:
  """A generation in numbers.

  Args:
    row: its row of metrics.jsonl, {} if there is none.
  """
  a: Answers = g.answers
  top = max(int(a.tokens.max()), config.get("generate", {}).get("max_new_tokens", 1))
  scored = np.isfinite(a.logprob)
  known = np.isfinite(a.repetition)
  least = floor.generate_seconds(record, config, a.tokens)
  return {
    "step": g.step,
    "answers": len(a.tokens),
    "prompts": len(g.prompts),
    "tokens": int(a.tokens.sum()),
    "mean_tokens": float(a.tokens.mean()),
    "longest": int(a.tokens.max()),
    "histogram": np.histogram(a.tokens, _BINS, (0, top))[0].tolist(),
    "histogram_to": top,
    "cut_share": float(np.mean(a.finish == FINISH.index("length"))),
    "empty_share": float(a.empty.mean()),
    "repetition": _mean(a.repetition[known]),
    "logprob": _mean(a.logprob[scored], a.tokens[scored]),
    "seconds": row.get("step_seconds"),
    "tokens_per_second": row.get("tokens_per_second"),
    "floor_seconds": least,
  }


def _mean(values: np.ndarray, weights: np.ndarray | None = None) -> float | None:
  return float(np.average(values, weights=weights)) if len(values) else None


def _index(generations: list[Generation]) -> dict[str, Any]:
  """Columns of figures for every prompt and sample of every generation; null: no such answer."""
  prompts: dict[int, tuple[str, str]] = {}
  for g in generations:
    prompts.update(g.prompts)
  order = sorted(prompts)
  samples = 1 + max((int(g.answers.sample.max()) for g in generations), default=0)
  rows = []
  for g in generations:
    a = g.answers
    at = np.searchsorted(order, a.prompt) * samples + a.sample

    def spread(values, digits=None, at=at):
      out: list[Any] = [None] * (len(order) * samples)
      for place, value in zip(at.tolist(), values.tolist(), strict=True):
        out[place] = value if digits is None else round(value, digits)
      return out

    rows.append(
      {
        "tokens": spread(a.tokens),
        "finish": spread(a.finish),
        "logprob": spread(a.logprob, 3),
        "repetition": spread(a.repetition, 3),
        "empty": spread(a.empty.astype(int)),
      }
    )
  return {
    "prompts": [[index, *prompts[index]] for index in order],
    "samples": samples,
    "generations": rows,
  }


def _texts(generations: list[Generation], size: int, max_bytes: int):
  """The packed texts that the report takes, and what it says about them."""
  sizes = {g.step: {part: len(text) for part, text in g.parts.items()} for g in generations}
  prompts = {part: text for g in reversed(generations) for part, text in g.prompt_parts.items()}
  kept = kept_parts(sizes, max_bytes - sum(map(len, prompts.values())))
  parts = {
    (number, part): g.parts[part]
    for number, g in enumerate(generations)
    for part in sorted(kept[g.step])
  }
  shown = set().union(*kept.values()) if kept else set()
  everything = {p // size for g in generations for p in g.prompts}
  return (
    parts,
    {part: prompts[part] for part in sorted(shown & prompts.keys())},
    {
      "part_size": size,
      "parts": [sorted(kept[g.step]) for g in generations],
      "complete": all(each == everything for each in kept.values()),
      "max_bytes": max_bytes,
      "files": [f"samples/step_{g.step:06d}/" for g in generations],
      "finish": FINISH,
    },
  )


def timeline(record: dict[str, Any], first: int = 1) -> dict[str, Any]:
  """Spans of the run, seconds from its beginning: compile, each launch, each save.

  Runs of before start times were kept have their launches laid end to end.

  Args:
    first: the first training step.

  Returns:
    spans: lists of mode, start, seconds, step, count; neighbours of one mode may be one span.
    saves: lists of start, seconds, step, of what the run waited for each checkpoint.
    timed: whether the starts are those of the clock.
    origin: the beginning, seconds since 1970, or None.
  """
  timings = record.get("timings", {})
  log = [e for e in timings.get("launches", ()) if isinstance(e.get("seconds"), (int, float))]
  saves = timings.get("checkpoint_seconds") or []
  timed = all("start" in e for e in [*log, *saves])
  started, compiled = record.get("started"), timings.get("compile")
  spans = []
  if compiled:
    spans.append(["compile", started if timed else 0.0, compiled, None, 1])
  clock, step = compiled or 0.0, first - 1
  for entry in log:
    step += entry["mode"] == "train"
    start = entry["start"] if timed else clock
    clock += entry["seconds"]
    spans.append([entry["mode"], start, entry["seconds"], step, 1])
  spans = [s for s in spans if isinstance(s[1], (int, float))]
  spans.sort(key=lambda s: s[1])
  origin = spans[0][1] if timed and spans else 0.0
  merged = _merge(spans)
  return {
    "spans": [[mode, round(s - origin, 3), t, k, n] for mode, s, t, k, n in merged],
    "saves": [[round(s["start"] - origin, 3), s["seconds"], s["step"]] for s in saves]
    if timed
    else [],
    "saved_seconds": sum(s["seconds"] for s in saves),
    "timed": timed,
    "origin": origin if timed and spans else None,
    "total": timings.get("total"),
  }


def _merge(spans: list[list]) -> list[list]:
  """Neighbours of one mode as one span, should there be too many."""
  each = -(-len(spans) // _POINTS)
  out: list[list] = []
  for mode, start, seconds, step, count in spans:
    last = out[-1] if out else None
    if each > 1 and last and last[0] == mode and last[4] < each:
      out[-1] = [mode, last[1], start + seconds - last[1], step, last[4] + count]
    else:
      out.append([mode, start, seconds, step, count])
  return out


def _floors(record, config, rows) -> dict[str, Any]:
  """The training steps' least and actual seconds, over all but the first, which is slower."""
  pairs = [(floor.train_seconds(record, config, r), r.get("step_seconds")) for r in rows]
  pairs = [(a, b) for a, b in pairs[len(pairs) > 1 :] if a and b]
  if not pairs:
    return {}
  least, took = (sum(values) for values in zip(*pairs, strict=True))
  return {"train_floor": least, "train_seconds": took, "steps": len(pairs)}


def _chip(record) -> dict[str, Any] | None:
  chip = chip_of(record.get("devices", {}).get("kind", ""))
  return {"name": chip.name, "hbm_bytes": chip.hbm_bytes} if chip else None


def _when(folder) -> str | None:
  """When the run last wrote its run.json."""
  try:
    _, seconds = _look(folder / "run.json")
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
