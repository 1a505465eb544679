"""Rows that cannot be used: how many, for which reasons, and which."""

from collections.abc import Sequence
from typing import NamedTuple

from simpo_jax.data.forms import REASONS

_EXAMPLES = 3  # row ids kept of each reason


class SkipReport(NamedTuple):
  """What became of the rows. `skipped` and `examples` (the first row ids) are keyed by reason."""

  total: int
  kept: int
  skipped: dict[str, int]
  truncated: dict[str, int]  # kept pairs whose "prompt", "chosen" or "rejected" was cut
  examples: dict[str, list[str]]


def no_rows() -> SkipReport:
  """The report on none."""
  return SkipReport(0, 0, {}, {}, {})


def add_row(
  report: SkipReport, id: str, reason: str | None = None, cut: Sequence[str] = ()
) -> SkipReport:
  """The report with one more row in it; its dicts are updated in place.

  Args:
    id: of the row.
    reason: for which it is skipped; None: it is kept.
    cut: its parts that were cut.
  """
  if reason is not None:
    report.skipped[reason] = report.skipped.get(reason, 0) + 1
    examples = report.examples.setdefault(reason, [])
    if len(examples) < _EXAMPLES:
      examples.append(id)
  for name in cut:
    report.truncated[name] = report.truncated.get(name, 0) + 1
  return report._replace(total=report.total + 1, kept=report.kept + (reason is None))


def add_reports(a: SkipReport, b: SkipReport) -> SkipReport:
  """One report on the rows of both, those of `a` first."""
  add = lambda x, y: {k: x.get(k, 0) + y.get(k, 0) for k in {**x, **y}}  # noqa: E731
  examples = {
    reason: [*a.examples.get(reason, ()), *b.examples.get(reason, ())][:_EXAMPLES]
    for reason in {**a.examples, **b.examples}
  }
  return SkipReport(
    a.total + b.total,
    a.kept + b.kept,
    add(a.skipped, b.skipped),
    add(a.truncated, b.truncated),
    examples,
  )


def commonest(report: SkipReport) -> list[tuple[str, int]]:
  """(reason, rows), the commonest first."""
  return sorted(report.skipped.items(), key=lambda item: -item[1])


def why(report: SkipReport) -> str:
  """The reasons, the commonest first, each with its first rows and its meaning."""
  return ", ".join(
    f"{reason} {n} (first {', '.join(report.examples[reason])}: {REASONS[reason]})"
    for reason, n in commonest(report)
  )
