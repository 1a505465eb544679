"""The count of rows that cannot be used."""

import pytest

from simpo_jax.data.skip_report import add_reports, add_row, describe_reasons, empty_report

ROWS = [
  ("a:1", "identical", ()),
  ("a:2", None, ("prompt", "chosen")),
  ("a:3", "malformed_json", ()),
  ("a:4", None, ()),
  ("a:5", "malformed_json", ()),
  ("a:6", None, ("prompt",)),
  ("a:7", "malformed_json", ()),
  ("a:8", "malformed_json", ()),
]


def report_on(rows):
  report = empty_report()
  for row in rows:
    report = add_row(report, *row)
  return report


def test_rows_are_counted_and_the_first_of_a_reason_named():
  report = report_on(ROWS)
  assert (report.total, report.kept) == (8, 3)
  assert report.skipped == {"identical": 1, "malformed_json": 4}
  assert report.truncated == {"prompt": 2, "chosen": 1}
  assert report.examples == {"identical": ["a:1"], "malformed_json": ["a:3", "a:5", "a:7"]}
  assert describe_reasons(report) == (
    "malformed_json 4 (first a:3, a:5, a:7: not a JSON object; a file that is one list of "
    "them is named .json), "
    "identical 1 (first a:1: both responses are the same tokens)"
  )


@pytest.mark.parametrize("cut", range(len(ROWS) + 1))
def test_reports_on_parts_give_that_on_the_whole(cut):
  first, second = report_on(ROWS[:cut]), report_on(ROWS[cut:])
  kept = first._replace(examples={k: [*v] for k, v in first.examples.items()})
  assert add_reports(first, second) == report_on(ROWS)
  assert first == kept, "neither part is changed"
