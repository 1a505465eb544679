"""Counts of unusable rows by reason, with examples."""

from collections.abc import Sequence
from typing import NamedTuple

from simpo_jax.data.rows.reasons import REASONS
from simpo_jax.errors import UserError

_EXAMPLES = 3  # row ids kept per reason
_GRACE_ROWS = 100  # for fewer rows read so far, the limit is that of this many


class SkipReport(NamedTuple):
  """Counts of rows. `skipped` (counts) and `examples` (first row ids) are keyed by reason.

  `notes` counts facts that the user should know, each of which completes "N rows ...".
  """

  total: int
  kept: int
  skipped: dict[str, int]
  truncated: dict[str, int]  # by "prompt", "chosen" and "rejected": kept pairs
  examples: dict[str, list[str]]
  notes: dict[str, int]


def empty_report() -> SkipReport:
  """Returns the report on no rows."""
  return SkipReport(0, 0, {}, {}, {}, {})


def add_row(
  report: SkipReport,
  id: str,
  reason: str | None = None,
  truncated: Sequence[str] = (),
  notes: Sequence[str] = (),
) -> SkipReport:
  """Returns the report with one more row; its dicts are updated in place.

  Args:
    id: the row id, or what else to show as the example.
    reason: why the row is skipped; None: it is kept.
    truncated: the parts of the pair that were truncated.
    notes: facts about the row.
  """
  if reason is not None:
    report.skipped[reason] = report.skipped.get(reason, 0) + 1
    examples = report.examples.setdefault(reason, [])
    if len(examples) < _EXAMPLES:
      examples.append(id)
  for name in truncated:
    report.truncated[name] = report.truncated.get(name, 0) + 1
  for note in dict.fromkeys(notes):
    report.notes[note] = report.notes.get(note, 0) + 1
  return report._replace(total=report.total + 1, kept=report.kept + (reason is None))


def add_reports(a: SkipReport, b: SkipReport) -> SkipReport:
  """Returns the sum of two reports, with the examples of `a` first."""
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
    add(a.notes, b.notes),
  )


def reasons_by_count(report: SkipReport) -> list[tuple[str, int]]:
  """Returns [(reason, rows)], most frequent first."""
  return sorted(report.skipped.items(), key=lambda item: -item[1])


def describe_reasons(report: SkipReport) -> str:
  """Describes the reasons, most frequent first, each with its first row ids and its meaning."""
  return ", ".join(
    f"{reason} {n} (first {', '.join(report.examples[reason])}: {REASONS[reason]})"
    for reason, n in reasons_by_count(report)
  )


def check_limit(
  report: SkipReport, limit: float, field: str, rows: str = "rows", outcome: str = ""
) -> None:
  """Raises a UserError if more than the fraction `limit` of rows is unusable, or none is usable.

  Args:
    field: the config field or flag that sets the limit, for the message.
    rows: what the rows are, for the message.
    outcome: the consequence, for the message, such as ", nothing was written".
  """
  if not report.kept or report.total - report.kept > limit * report.total:
    remedy = f", or raise {field}={limit:g}" if report.kept else ""
    raise _skip_error(report, rows, outcome, remedy)


def check_read_so_far(report: SkipReport, limit: float) -> None:
  """Like `check_limit`, for data that is read lazily; tolerant while few rows have been read.

  Args:
    report: on all rows that the run has read, including those before a resume.
  """
  if report.total - report.kept > limit * max(report.total, _GRACE_ROWS):
    remedy = f", or raise data.max_skip_fraction={limit:g}"
    raise _skip_error(report, "rows read so far", "", remedy)


def _skip_error(report: SkipReport, rows: str, outcome: str, remedy: str) -> UserError:
  lost = report.total - report.kept
  return UserError(
    f"{lost} of {report.total} {rows} cannot be used{outcome}: {describe_reasons(report)}; "
    f"fix them{remedy}"
  )
