"""Renders a plan as plain-text tables."""

from collections import Counter
from typing import Any

from simpo_jax.runtime.console import human_bytes

_SHOWN = 6  # collectives and buffers listed per mode
_MEMORY_KINDS = {
  "gradients": "gradients (float32 sums)",
  "kv_pool": "KV pool",
  "decode_weights": "decode weights",
}


def render(plan: dict[str, Any]) -> str:
  """Renders the plan of `make_plan` as text."""
  parts = [_head(plan), _memory(plan), _times(plan), _generation(plan), _exchanges(plan)]
  return "\n\n".join(p for p in [*parts, _verdict(plan)] if p)


def _head(plan: dict[str, Any]) -> str:
  d, v, b = plan["devices"], plan["versions"], plan["batch"]
  chip = d["chip"] or d["kind"]
  axes = " x ".join(f"{name} {size}" for name, size in d["mesh"].items())
  where = f"{plan['topology']}: " if plan["topology"] else ""
  pool = plan["pool"]
  rows = [
    ("config", plan["config"]),
    ("devices", f"{where}{d['count']} x {chip}, {d['hosts']} host(s); mesh {axes}"),
    ("model", f"{plan['model']['source']}, {plan['model']['param_dtype']} weights"),
    ("batch", f"{b['pairs']} pairs in rows of {b['row_length']} tokens, {b['rows']} at a time"),
    ("KV pool", f"{pool['pages']} pages of {pool['page_size']} tokens: {pool['reason']}"),
    (
      "attention",
      f"{plan['attention']['train']} in training, {plan['attention']['generate']} in generation"
      + (f"; {plan['attention_note']}" if plan["attention_note"] else ""),
    ),
    ("program", f"{plan['program']}, compiled in {plan['compile_seconds']:.0f} s"),
    ("versions", ", ".join(f"{name} {version}" for name, version in v.items())),
  ]
  if plan["assumed"]:
    rows.append(("assumed", plan["assumed"][0]))
    rows += [("", text) for text in plan["assumed"][1:]]
    rows.append(("", "the run's own program will differ in these sizes, and in its fingerprint"))
  return _columns(rows)


def _memory(plan: dict[str, Any]) -> str:
  m = plan["memory"]
  modes = m["modes"]
  rows: list[tuple[str, ...]] = [("memory per chip", *modes)]

  def line(name: str, value: float) -> None:
    rows.append((name, *([_bytes(value)] * len(modes))))

  line("params", m["params"])
  line("optimizer state", m["optimizer_state"])
  line("inputs and outputs", m["inputs"])
  line("program code", m["code"])
  found = (kind for mode in modes.values() for kind in mode["kinds"] if kind != "other")
  kinds: dict[str, None] = dict.fromkeys(found)
  for kind in kinds:
    values = (_bytes(mode["kinds"].get(kind)) for mode in modes.values())
    rows.append((_MEMORY_KINDS.get(kind, kind), *values))
  rows.append(
    ("activations, temporaries", *(_bytes(mode["kinds"]["other"]) for mode in modes.values()))
  )
  rows.append(("peak of the mode", *(_bytes(mode["peak"]) for mode in modes.values())))
  lines = [_columns(rows)]
  for name, mode in modes.items():
    if mode["largest"]:
      same = Counter((b["bytes"], b["shape"]) for b in mode["largest"])
      shown = ", ".join(
        (f"{n} x " if n > 1 else "") + f"{_bytes(size)} {shape}"
        for (size, shape), n in list(same.items())[:_SHOWN]
      )
      lines.append(f"largest temporaries of {name}: {shown}")
  if all(mode["peak"] is None for mode in modes.values()):
    lines.append("(this compiler reports no memory per mode; temporaries of all modes: "
                 f"{_bytes(m['temporaries'])})")  # fmt: skip
  return "\n".join(lines)


def _times(plan: dict[str, Any]) -> str:
  header = ("per chip, least times", "flops", "bytes", "compute", "memory", "exchange", "roofline")
  rows: list[tuple[str, ...]] = [header]
  modes = plan["modes"]

  def line(name: str, x: dict[str, Any]) -> None:
    times = (x["compute_seconds"], x["memory_seconds"], x["exchange_seconds"])
    roof = _seconds(x["roofline_seconds"])
    roof += f" ({x['bound']})" if x["bound"] not in (None, "unknown") else ""
    rows.append((name, _count(x["flops"]), _bytes(x["bytes"]), *map(_seconds, times), roof))

  line("train step", modes["train"])
  line("evaluation batch", modes["evaluate"])
  if "generate" in modes:
    for name, part in modes["generate"]["parts"].items():
      line(f"generate: {name.replace('_', ' ')}", part)
    line("generate: all", modes["generate"])
  t = modes["train"]
  lines = [_columns(rows)]
  text = (
    f"train step: {t['tokens']:,} tokens of pairs in {t['rows']} rows, {t['micro_batches']} "
    f"micro-batch(es); {_count(t['model_flops'])} flops per chip are the model's own"
  )
  if t["tokens_per_second"]:
    text += (
      f"; at most {t['tokens_per_second']:,.0f} tokens/s, "
      f"{100 * t['model_flops_utilization']:.0f}% model flops utilization"
    )
  else:
    text += "; no times, since the peak rates of this device are unknown"
  lines += [text, f"flops and bytes from {t['counted']}"]
  return "\n".join(lines)


def _generation(plan: dict[str, Any]) -> str:
  g = plan["modes"].get("generate")
  if g is None:
    return "this run never generates"
  times = ", ".join(
    f"{part['times']:,} x {name.replace('_', ' ')}" for name, part in g["parts"].items()
  )
  text = f"generation: {g['requests']:,} requests, {g['tokens']:,} tokens at the most: {times}"
  if g["roofline_seconds"]:
    text += (
      f"\nat least {g['roofline_seconds']:.2f} s in all, at most {g['tokens_per_second']:,.0f} "
      "tokens/s; exchanges not overlapped at all: "
      f"{_unoverlapped(g):.2f} s"
    )
  return text


def _unoverlapped(g: dict[str, Any]) -> float:
  return sum(
    part["times"]
    * (max(part["compute_seconds"], part["memory_seconds"]) + part["exchange_seconds"])
    for part in g["parts"].values()
  )


def _exchanges(plan: dict[str, Any]) -> str:
  blocks = []
  for mode, figures in plan["modes"].items():
    groups: dict[str, list] = {}
    for x in figures["collectives"]:
      groups.setdefault(x.get("part", "step"), []).append(x)
    for part, found in groups.items():
      title = f"exchanges, {mode}" + (f", one {part}" if mode == "generate" else ", one step")
      rows = [(title.replace("_", " "), "count", "bytes each", "over", "hosts", "seconds")]
      for x in found[:_SHOWN]:
        rows.append(
          (
            f"{x['kind']} {_short(x['shapes'])}",
            f"{x['count']:,.0f}",
            _bytes(x["bytes"]),
            f"{'+'.join(x['axes'])} ({x['group']})",
            "across" if x["crosses_hosts"] else "inside",
            _seconds(x["seconds"]),
          )
        )
      rest = found[_SHOWN:]
      if rest:
        seconds = [x["seconds"] for x in rest]
        rows.append(
          (
            f"{len(rest)} kinds more",
            f"{sum(x['count'] for x in rest):,.0f}",
            _bytes(sum(x["bytes"] * x["count"] for x in rest)) + " in all",
            "",
            "some across" if any(x["crosses_hosts"] for x in rest) else "inside",
            _seconds(None if None in seconds else sum(seconds)),
          )
        )
      blocks.append(_columns(rows))
  return "\n\n".join(blocks)


def _verdict(plan: dict[str, Any]) -> str:
  peak, hbm = _bytes(plan["peak_bytes_per_chip"]), plan["hbm_bytes_per_chip"]
  if plan["fits"]:
    text = f"fits: {peak}" + (f" of {_bytes(hbm)}" if hbm else "")
    text += f"; {_bytes(plan['alias_bytes'])} of train state are updated in place"
  else:
    text = f"does not fit: {peak} of {_bytes(hbm)}"
    text += f" ({plan['refused']})" if plan["refused"] else ""
  return "\n".join([text, *(f"  {line}" for line in plan["advice"])])


def _columns(rows: list[tuple[str, ...]]) -> str:
  """Aligns columns: the first to the left; the others to the right if there are more than two."""
  widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
  align = (lambda i, c: c.ljust(widths[i])) if len(rows[0]) == 2 else (
    lambda i, c: c.rjust(widths[i]) if i else c.ljust(widths[i])
  )  # fmt: skip
  return "\n".join("  ".join(align(i, c) for i, c in enumerate(row)).rstrip() for row in rows)


def _short(shapes: str) -> str:
  first, *rest = shapes.split(" ")
  return first + (f" and {len(rest)} more" if rest else "")


def _bytes(n: float | None) -> str:
  return "-" if n is None else human_bytes(n, ",.2f")


def _count(n: float) -> str:
  for unit in ("", "k", "M", "G", "T"):
    if n < 1000 or unit == "T":
      return f"{n:,.1f} {unit}".rstrip()
    n /= 1000
  raise AssertionError


def _seconds(s: float | None) -> str:
  if s is None:
    return "-"
  if s == 0:
    return "0"
  if s < 1e-3:
    return f"{s * 1e6:.1f} us"
  return f"{s * 1e3:.2f} ms" if s < 1 else f"{s:.2f} s"
