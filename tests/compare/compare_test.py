"""Before and after: figures by hand, intervals that cover, and a curve that says what they say."""

import json
import xml.etree.ElementTree as ET

import numpy as np
import pytest

from simpo_jax.compare.curve import Panel, Series, draw, ticks
from simpo_jax.compare.evaluations import (
  compare,
  compare_pairs,
  evaluation_panels,
  mean,
  read_evaluations,
  share,
)
from simpo_jax.errors import UserError


def pairs(margins):
  return [
    {"pair": str(i), "rewards/margins": m, "logps/chosen": m - 1.0, "logps/rejected": -1.0}
    for i, m in enumerate(margins)
  ]


def test_wilson_by_its_formula():
  for k, n in ((0, 10), (5, 10), (93, 100), (100, 100)):
    z, p = 1.959964, k / n
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    np.testing.assert_allclose(share(k, n), (p, center - half, center + half), atol=1e-6)


def test_the_interval_of_a_mean():
  values = np.random.default_rng(1).normal(2.0, 3.0, 400)
  found = mean(values)
  half = 1.96 * values.std() / 20
  np.testing.assert_allclose(
    found, (values.mean(), *(values.mean() + half * np.array((-1, 1)))), atol=0.03
  )
  assert found == mean(values)


def test_a_comparison_by_hand():
  # Six pairs change sides to the better, one to the worse, three stay.
  before = [-1.0] * 6 + [1.0, 1.0, 1.0, -1.0]
  after = [2.0] * 6 + [-1.0, 1.0, 1.0, -1.0]
  found = compare_pairs(pairs(before), pairs(after), (0, 50))
  assert (found.pairs, found.steps) == (10, (0, 50))
  assert [a.value for a in found.accuracy] == [0.3, 0.8]
  assert found.accuracy_change.value == pytest.approx(0.5)
  assert (found.gained, found.lost) == (6, 1)
  # Of 7 that changed, 0, 1, 6 or 7 to one side: 2 * (1 + 7) / 2^7.
  assert found.accuracy_p == pytest.approx(16 / 128)
  assert found.margin_change.value == pytest.approx(1.6)
  reversed_ = compare_pairs(pairs(after), pairs(before), (0, 1))
  assert found.margin_change.low > 0 > reversed_.margin_change.high
  assert found.logps_chosen == pytest.approx((-1.4, 0.2))
  assert found.logps_rejected == (-1.0, -1.0)


def test_nothing_changed_is_no_evidence():
  found = compare_pairs(pairs([1.0, -1.0]), pairs([1.0, -1.0]), (0, 1))
  assert found.accuracy_p == 1.0 and found.accuracy_change == (0.0, 0.0, 0.0)


def write_run(folder, margins):
  for step, values in margins.items():
    path = folder / "evaluations" / f"step_{step:06d}" / "pairs.jsonl"
    path.parent.mkdir(parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in pairs(values)))
  rows = [{"step": s, "mode": "train", "rewards/margins": 0.1 * s} for s in range(1, 31)]
  (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_is_read_first_against_last(tmp_path):
  write_run(tmp_path, {0: [-1.0, -1.0], 1000000: [1.0, 1.0], 30: [1.0, -1.0]})
  found = compare(read_evaluations(tmp_path))
  assert found.steps == (0, 1000000)
  assert [a.value for a in found.accuracy] == [0.0, 1.0]


def test_one_evaluation_is_not_enough(tmp_path):
  write_run(tmp_path, {30: [1.0, -1.0]})
  with pytest.raises(UserError, match="holds 1 evaluation.*--config.evaluate.at_start=True"):
    read_evaluations(tmp_path)


def test_the_curve_says_what_was_measured(tmp_path):
  write_run(tmp_path, {0: [-1.0, 1.0], 30: [1.0, 3.0]})
  accuracy, margin = evaluation_panels(tmp_path, read_evaluations(tmp_path))
  assert accuracy.series[0].points == [(0, 50.0), (30, 100.0)]
  assert margin.series[0].points == [(0, 0.0), (30, 2.0)]
  steps, means = zip(*margin.series[1].points, strict=True)
  assert steps == tuple(range(10, 31))
  np.testing.assert_allclose(means, [0.1 * (s - 4.5) for s in steps])


def test_a_point_lies_where_its_axis_says():
  svg = draw(
    [Panel("a < b", [Series("s", [(0, 0.0), (10, 100.0)], [(0, 5), (90, 100)])], (0, 100))]
  )
  root = ET.fromstring(svg)
  tag = "{http://www.w3.org/2000/svg}"
  texts = {t.text: (float(t.attrib["x"]), float(t.attrib["y"])) for t in root.iter(f"{tag}text")}
  assert {"a < b", "s, 95% interval", "training step", "0", "100", "10"} <= texts.keys()
  first, last = ((float(c.attrib["cx"]), float(c.attrib["cy"])) for c in root.iter(f"{tag}circle"))
  assert (last[0], last[1]) == (texts["10"][0], texts["100"][1] - 4)
  assert first[0] < last[0] and first[1] > last[1]
  assert draw([Panel("a", [Series("s", [(1, 2.0)])])]), "a single point has a picture, too"


@pytest.mark.parametrize(
  ("low", "high", "expected"),
  [
    (0, 100, [0, 20, 40, 60, 80, 100]),
    (0, 60, [0, 10, 20, 30, 40, 50, 60]),
    (-0.3, 0.5, [-0.2, 0, 0.2, 0.4]),
    (0, 1e-3, [0, 2e-4, 4e-4, 6e-4, 8e-4, 1e-3]),
  ],
)
def test_ticks_are_round(low, high, expected):
  assert ticks(low, high) == pytest.approx(expected, abs=1e-12)
