"""The timeline: when the run compiled, launched and saved."""

from typing import Any

_SPANS = 2000  # at most, about


def timeline(record: dict[str, Any], first: int = 1) -> dict[str, Any]:
  """Spans of the run, seconds from its beginning: compile, each launch, each save.

  Runs of before start times were kept have their launches laid end to end.

  Args:
    first: the first training step.

  Returns:
    spans: lists of mode, start, seconds, step, count; neighbors of one mode may be one span.
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
  """Neighbors of one mode as one span, should there be too many."""
  each = -(-len(spans) // _SPANS)
  out: list[list] = []
  for mode, start, seconds, step, count in spans:
    last = out[-1] if out else None
    if each > 1 and last and last[0] == mode and last[4] < each:
      out[-1] = [mode, last[1], start + seconds - last[1], step, last[4] + count]
    else:
      out.append([mode, start, seconds, step, count])
  return out
