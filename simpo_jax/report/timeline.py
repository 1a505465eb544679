"""Builds the timeline of a run: compilation, launches and checkpoints."""

from typing import Any

from simpo_jax.arith import ceil_div

_MAX_SPANS = 2000  # approximate


def timeline(record: dict[str, Any], first: int = 1) -> dict[str, Any]:
  """Returns the spans of compilation, launches and saves, in seconds from the start of the run.

  Runs of early versions did not record start times: their launches are placed end to end.

  Args:
    record: contents of run.json.
    first: the first training step of the run.

  Returns:
    spans: lists of mode, start, seconds, step, count; `count` neighbors of one mode may be merged.
    saves: lists of start, seconds, step; seconds that the run waited for the checkpoint.
    saved_seconds: sum over all saves.
    timed: whether start times were recorded.
    origin: start of the run in seconds since 1970; None if not recorded.
    total: seconds of the run; None if it has not ended.
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
  """Merges neighboring spans of a mode if there are more than `_MAX_SPANS`."""
  each = ceil_div(len(spans), _MAX_SPANS)
  out: list[list] = []
  for mode, start, seconds, step, count in spans:
    last = out[-1] if out else None
    if each > 1 and last and last[0] == mode and last[4] < each:
      out[-1] = [mode, last[1], start + seconds - last[1], step, last[4] + count]
    else:
      out.append([mode, start, seconds, step, count])
  return out
