"""Rows that cannot be used: how many, for which reasons, and which."""

from collections.abc import Sequence
from typing import NamedTuple

from simpo_jax.data.row_formats import REASONS
from simpo_jax.errors import UserError

_EXAMPLES = 3  # row ids kept of each reason
_LENIENT = 100  # rows read so far within which every one may be bad before the limit counts


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


def check_limit(
  report: SkipReport, limit: float, field: str, rows: str = "rows", outcome: str = ""
) -> None:
  """Raises a UserError if more than this fraction of all rows cannot be used, or none can.

  Args:
    field: that sets the limit, for the message.
    rows: which rows they are.
    outcome: what came of it.
  """
  if not report.kept or report.total - report.kept > limit * report.total:
    remedy = f", or raise {field}={limit:g}" if report.kept else ""
    raise _too_many(report, rows, outcome, remedy)


def check_read_so_far(report: SkipReport, limit: float) -> None:
  """`check_limit` of data that is read as it is needed: of few rows any may be bad.

  Args:
    report: on the rows that the run has read, also before it was resumed.
  """
  if report.total - report.kept > limit * max(report.total, _LENIENT):
    raise _too_many(report, "rows read so far", "", f", or raise data.max_skip_fraction={limit:g}")


def _too_many(report: SkipReport, rows: str, outcome: str, remedy: str) -> UserError:
  lost = report.total - report.kept
  return UserError(
    f"{lost} of {report.total} {rows} cannot be used{outcome}: {why(report)}; fix them{remedy}"
  )
