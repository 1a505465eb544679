"""Draws line charts as SVG: panels side by side, with interval bands; output is deterministic."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

_COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")  # colorblind-safe (Okabe and Ito)
_PLOT = (300, 200)  # width and height of a panel's plot, in pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 18, 34, 40  # margins around the plot
_LINE = 16  # height of a legend line
_TICKS = 6  # approximate

Point = tuple[float, float]


class Series(NamedTuple):
  """One line of a chart.

  Attributes:
    label: legend text.
    points: (x, y), sorted by x.
    bands: (low, high) of each point; empty: no band.
  """

  label: str
  points: Sequence[Point]
  bands: Sequence[tuple[float, float]] = ()


class Panel(NamedTuple):
  """One chart.

  Attributes:
    title: shown above the chart.
    series: the lines.
    limits: range of y; None: fits the series.
    level: y of a dashed horizontal line; None: no line.
  """

  title: str
  series: Sequence[Series]
  limits: tuple[float, float] | None = None
  level: float | None = None


def draw(panels: Sequence[Panel], x_label: str = "training step") -> str:
  """Returns an SVG document with a white background."""
  legend = _LINE * max(len(panel.series) for panel in panels)
  width = len(panels) * (_LEFT + _PLOT[0] + _RIGHT)
  height = _TOP + _PLOT[1] + _BOTTOM + legend + 8
  parts = [
    f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
    f'viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
    f'<rect width="{width}" height="{height}" fill="#fff"/>',
  ]
  for i, panel in enumerate(panels):
    parts.append(f'<g transform="translate({i * (_LEFT + _PLOT[0] + _RIGHT) + _LEFT},{_TOP})">')
    parts += _panel(panel, x_label)
    parts.append("</g>")
  return "\n".join([*parts, "</svg>"]) + "\n"


def ticks(low: float, high: float) -> list[float]:
  """Returns at most eight round numbers from `low` to `high`."""
  raw = 0.7 * (high - low) / (_TICKS - 1)
  power = 10.0 ** math.floor(math.log10(raw))
  step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * (1 - 1e-9))
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [round(i * step, 10) for i in range(first, last + 1)]


def _panel(panel: Panel, x_label: str) -> Iterator[str]:
  width, height = _PLOT
  xs = [x for s in panel.series for x, _ in s.points]
  ys = [y for s in panel.series for _, y in s.points]
  ys += [y for s in panel.series for band in s.bands for y in band]
  left, right = _padded_range(min(xs), max(xs), 0.0)
  bottom, top = panel.limits or _padded_range(min(ys), max(ys), 0.05)

  def at(x: float, y: float) -> Point:
    return (x - left) / (right - left) * width, (top - y) / (top - bottom) * height

  yield _text(0, -14, panel.title, "start", 'font-weight="bold"')
  for y in ticks(bottom, top):
    _, py = at(left, y)
    yield f'<path d="M0 {py:.1f}H{width}" stroke="#ddd"/>'
    yield _text(-8, py + 4, f"{y:g}", "end")
  for x in ticks(left, right):
    px, _ = at(x, bottom)
    yield _text(px, height + 16, f"{x:g}", "middle")
  yield _text(width / 2, height + 32, x_label, "middle")
  if panel.level is not None and bottom <= panel.level <= top:
    _, py = at(left, panel.level)
    yield f'<path d="M0 {py:.1f}H{width}" stroke="#888" stroke-dasharray="4 4"/>'
  for i, series in enumerate(panel.series):
    color = _COLORS[i % len(_COLORS)]
    yield from _series(series, color, at)
    py = height + _BOTTOM + _LINE * i + 8
    yield f'<path d="M0 {py - 4}H20" stroke="{color}" stroke-width="2"/>'
    band = ", 95% interval" if series.bands else ""
    yield _text(26, py, series.label + band, "start")
  yield f'<path d="M0 0V{height}H{width}" fill="none" stroke="#444"/>'


def _series(series: Series, color: str, at: Callable[[float, float], Point]) -> Iterator[str]:
  line = [at(*point) for point in series.points]
  if series.bands:
    xs = [x for x, _ in series.points]
    edge = [at(x, high) for x, (_, high) in zip(xs, series.bands, strict=True)]
    edge += [at(x, low) for x, (low, _) in reversed(list(zip(xs, series.bands, strict=True)))]
    yield f'<path d="{_path(edge)}Z" fill="{color}" fill-opacity="0.15"/>'
  yield f'<path d="{_path(line)}" fill="none" stroke="{color}" stroke-width="2"/>'
  if series.bands:
    for x, y in line:
      yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>'


def _path(points: Sequence[Point]) -> str:
  return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
  return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _padded_range(low: float, high: float, fraction: float) -> tuple[float, float]:
  if low == high:
    return low - 0.5, high + 0.5
  padding = fraction * (high - low)
  return low - padding, high + padding
