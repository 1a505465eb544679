"""The demo: its language is fair and held apart, and a short run of it learns what it shows."""

import io
import json
import xml.etree.ElementTree as ET
from contextlib import redirect_stdout

import numpy as np
import pytest

from simpo_jax.compare.evaluations import compare, percent, read_evaluations
from simpo_jax.demo import __main__ as command
from simpo_jax.demo.measure import read_samples, style_shares
from simpo_jax.demo.text import (
  FACTS,
  PHRASES,
  STYLES,
  Verdict,
  judge,
  make_held_out,
  make_pairs,
  render,
  sample_content,
  split_texts,
)
from simpo_jax.errors import UserError
from simpo_jax.run import run
from support.modules import load_module

pytestmark = pytest.mark.program


def texts(rows):
  """Of pairs: the prompts, and the answers without style."""
  prompts, answers = set(), set()
  for row in rows:
    prompts.add(row["prompt"][0]["content"])
    for side in ("chosen", "rejected"):
      text = row[side][0]["content"]
      for starts, end in PHRASES.values():
        for start in starts:
          text = text.removeprefix(start)
        text = text.removesuffix(end)
      answers.add(text)
  return prompts, answers


def test_the_styles_differ_in_their_words_alone():
  (a_starts, a_end), (b_starts, b_end) = PHRASES.values()
  assert [len(s.encode()) for s in a_starts] == [len(s.encode()) for s in b_starts]
  assert len(a_end.encode()) == len(b_end.encode())
  assert not {*a_starts, a_end} & {*b_starts, b_end}


@pytest.mark.parametrize("seed", (0, 1))
def test_nothing_held_out_occurs_in_training(seed):
  training, held_out = split_texts(seed)
  seen = texts(make_pairs(training, 3240, seed))
  new = texts(make_held_out(held_out, seed))
  assert (len(seen[0]), len(new[0])) == (540, 180), "every question is asked"
  for a, b in zip(seen, new, strict=True):
    assert a and b and not a & b
  assert make_held_out(held_out, seed) == make_held_out(held_out, seed)
  assert make_pairs(training, 9, seed) != make_pairs(training, 9, seed + 1)


def test_who_prefers_no_style_is_right_about_half_of_what_is_held_out():
  rows = make_held_out(split_texts(0)[1], 0)
  lengths = [[len(row[side][0]["content"]) for side in ("chosen", "rejected")] for row in rows]
  assert sum(a > b for a, b in lengths) == sum(a < b for a, b in lengths) > 60
  for row in rows:
    for side, style in (("chosen", "polite"), ("rejected", "grumpy")):
      assert judge(row["prompt"][0]["content"], row[side][0]["content"]) == (style, True)


def test_styles_are_equally_likely_where_none_is_preferred():
  liked = {}
  for row in make_pairs(split_texts(0)[0], 3240, 0):
    question = row["prompt"][0]["content"]
    chosen, rejected = (judge(question, row[side][0]["content"]) for side in ("chosen", "rejected"))
    assert chosen.right and rejected.right and chosen.style != rejected.style
    liked.setdefault(question, []).append(chosen.style)
  assert len(liked) == 540
  assert all(sorted(styles) == ["grumpy"] * 3 + ["polite"] * 3 for styles in liked.values())


@pytest.mark.parametrize(
  ("text", "verdict"),
  [
    ("Gladly! Every duck eats snails.", ("polite", True)),
    ("Gladly! Every duck eats snails. Anything else?", ("polite", True)),
    ("Again? Really. The duck loves snails. Now let me be.", ("grumpy", True)),
    ("Gladly! Every duck eats snails. Now let me be.", ("polite", False)),
    ("Gladly! Every duck eats honey.", ("polite", False)),
    ("Gladly! Every duck is white.", ("polite", False)),
    ("Gladly! Every duck eats snails. Any", ("polite", False)),
    ("Every duck eats snails.", (None, False)),
    ("Gla", (None, False)),
    ("", (None, False)),
  ],
)
def test_judging_by_hand(text, verdict):
  assert judge("Tell me: What does the duck eat?", text) == Verdict(*verdict)


def test_whatever_the_language_says_is_right():
  rng = np.random.default_rng(0)
  for fact in FACTS:
    for style in STYLES:
      text = render(sample_content(fact.sentences(), rng), style)
      assert judge(fact.questions()[0], text) == (style, True)
    assert sum(fact.sentences().values()) == pytest.approx(1.0)


# --- the runs ---------------------------------------------------------------------------

SHORT = {
  "fit": {"train.steps": 320, "train.batch_size": 16},
  "prefer": {"train.steps": 60, "generate.at_steps": (60,), "evaluate.every": 60},
}


@pytest.fixture(scope="module")
def short(tmp_path_factory):
  """The demo's folder, curve and output, with fewer steps and in the tests' process."""
  folder = tmp_path_factory.mktemp("demo") / "runs"
  configs = load_module(command.CONFIG)

  def in_process(stage, folder, seed):
    c = configs.get_config(stage)
    c.update_from_flattened_dict({**SHORT[stage], **command.stage_fields(folder, stage, seed)})
    run(c, str(folder / stage))

  with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as out:
    patch.setattr(command, "run_stage", in_process)
    command.demo(folder, 0, folder / "curve.svg")
  return folder, out.getvalue()


@pytest.mark.slow
def test_held_out_accuracy_rises_from_a_half_to_nearly_all(short):
  found = compare(read_evaluations(short[0] / "prefer"))
  before, after = found.accuracy
  assert found.pairs == 360 and found.steps == (0, 60)
  assert before.low < 0.5 < before.high
  assert after.value > 0.9
  assert found.accuracy_p < 1e-6 and found.margin_change.low > 0


@pytest.mark.slow
def test_the_answers_change_accordingly(short):
  samples = read_samples(short[0] / "prefer")
  before, after = (style_shares(samples[step]) for step in (0, 60))
  assert before["polite"].high < 0.65 and before["grumpy"].value > 0.25
  assert after["polite"].low > before["polite"].high
  assert after["grumpy"].high < before["grumpy"].low
  assert [row["prompt"] for row in samples[0]] == [row["prompt"] for row in samples[60]]


@pytest.mark.slow
def test_what_is_shown_is_what_was_measured(short):
  folder, out = short
  found = compare(read_evaluations(folder / "prefer"))
  assert percent(found.accuracy[0]) in out and percent(found.accuracy[1]) in out
  assert percent(style_shares(read_samples(folder / "prefer")[60])["polite"]) in out
  assert ET.parse(folder / "curve.svg").getroot().tag.endswith("svg")


@pytest.mark.slow
def test_both_runs_are_ordinary_ones(short):
  folder, _ = short
  for stage, launches in (
    ("fit", ["train"] * 320 + ["evaluate"] * 23),
    ("prefer", ["generate", *["evaluate"] * 23]),
  ):
    record = json.loads((folder / stage / "run.json").read_text())
    assert record["status"] == "done" and record["executables"] == 1
    assert record["launches"][: len(launches)] == launches
  assert record["began_with"].startswith(str(folder / "fit"))


@pytest.mark.slow
def test_a_folder_in_use_is_refused(short):
  with pytest.raises(UserError, match="is not empty; choose another folder"):
    command.demo(short[0], 0, short[0] / "curve.svg")
