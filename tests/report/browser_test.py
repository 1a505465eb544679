"""The report in Chromium: drawn, browsed, searched, compared; accessible; hostile texts inert.

Skipped where there is no Chromium (`apt-get install chromium`, or name one in CHROMIUM).
"""

import json
import os
import pathlib
import shutil
import time

import pytest

from simpo_jax.report.page import write_report
from support.example_run import ATTACKS, make
from support.tiers import sweep

pytestmark = pytest.mark.browser

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
NARROW = {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def browser():
  if not CHROMIUM:
    pytest.skip("there is no Chromium on this machine")
  api = pytest.importorskip("playwright.sync_api")
  with api.sync_playwright() as driver:
    chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    yield chromium
    chromium.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("browser")


@pytest.fixture(scope="module")
def report(folder):
  """Of an ordinary run with a few prompts."""
  make(folder / "made", prompts=40, samples=2, tokens=80, at=(10, 20, 30), steps=30)
  return written(folder / "made")


@pytest.fixture(scope="module")
def compared(folder, report):
  make(folder / "other", prompts=40, samples=1, at=(20,), steps=40, learning_rate=5e-6, seed=1)
  return written(folder / "made", folder / "other")


@pytest.fixture(scope="module")
def attacked(folder):
  made = make(folder / "attacked", len(ATTACKS), texts=ATTACKS)
  run, config = (json.loads((made / f"{n}.json").read_text()) for n in ("run", "config"))
  run.update(error=" ".join(ATTACKS), began_with=ATTACKS[1], versions={a: a for a in ATTACKS})
  run["model"]["name"] = ATTACKS[2]
  run["data"]["train"].update(skipped={a: 1 for a in ATTACKS}, examples={a: a for a in ATTACKS})
  run["timings"]["launches"][3]["mode"] = ATTACKS[0]
  config = {**config, "name": ATTACKS[1], "others": {a: a for a in ATTACKS}}
  (made / "run.json").write_text(json.dumps(run))
  (made / "config.json").write_text(json.dumps(config))
  with open(made / "metrics.jsonl", "a") as f:
    f.write(json.dumps({"step": 3, "mode": "bad_step", "pairs": list(ATTACKS)}) + "\n")
    f.write(json.dumps({"step": 24, "mode": "train", "loss": 0.6, **{a: 1.0 for a in ATTACKS}}))
    f.write("\n")
  return written(made)


def written(*folders):
  out = folders[0] / ("report.html" if len(folders) == 1 else "compared.html")
  write_report(folders, out)
  return out


@pytest.fixture
def visit(browser):
  """`visit(path)`: the page, whose errors fail the test at its end."""
  contexts, problems = [], []

  def go(path, viewport=DESKTOP, scheme="light", fragment=""):
    context = browser.new_context(viewport=viewport, color_scheme=scheme, reduced_motion="reduce")
    contexts.append(context)
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.on("console", lambda m: problems.append(m.text) if m.type in ("error", "warning") else 0)
    page.on("pageerror", lambda e: problems.append(str(e)))
    page.on("dialog", lambda d: (problems.append(f"dialog {d.message}"), d.dismiss()))
    own = path.as_uri()
    page.on("request", lambda r: None if r.url.startswith(own) else problems.append(r.url))
    page.goto(own + fragment)
    page.wait_for_selector("#settings summary")
    return page

  yield go
  for context in contexts:
    context.close()
  assert problems == []


def texts(page, selector):
  return page.locator(selector).all_text_contents()


def has(page, selector, text):
  """Waits until the element says so."""
  from playwright.sync_api import expect

  expect(page.locator(selector)).to_have_text(text, timeout=30_000)


# --- what is drawn -----------------------------------------------------------------------------


def test_the_page_shows_the_run(visit, report):
  page = visit(report)
  assert page.title() == "made · simpo_jax"
  assert "made-model on TPU v5p × 4 · 30 training steps · 3 generations" in page.inner_text("#lead")
  assert page.locator("#alerts p").count() == 0
  charts = texts(page, ".chart-title")
  assert {"Loss", "Reward margin", "Accuracy", "Gradient norm", "Answer length, tokens"} <= {
    *charts
  }
  assert page.locator(".chart svg").count() == len(charts)
  marked = page.locator(".chart").first.locator(".generation").count()
  assert marked == 3, "a mark for each generation"
  paths = page.eval_on_selector_all(".chart path.line", "all => all.map(p => p.getAttribute('d'))")
  assert paths and not [d for d in paths if "NaN" in d or len(d) < 8]
  lanes = ["compile", "train", "generate", "evaluate", "checkpoint"]
  assert texts(page, "#timeline svg text")[:5] == lanes
  assert "identical" in page.inner_text("#data-rows") and "9.00 GiB" in page.inner_text("#memory")
  assert page.locator("table.generations tbody tr").count() == 3


@pytest.mark.slow
def test_one_cursor_reads_all_charts(visit, report):
  page = visit(report)
  rows = [json.loads(r) for r in (report.parent / "metrics.jsonl").read_text().splitlines()]
  train = {r["step"]: r for r in rows if r["mode"] == "train"}

  def loss():
    return float(texts(page, ".chart")[0].split("training ")[1].split()[0])

  assert loss() == pytest.approx(train[30]["loss"], rel=1e-3)
  page.focus("#cursor")
  for _ in range(12):
    page.keyboard.press("ArrowLeft")
  assert page.get_attribute("#cursor", "aria-valuetext") == "step 18"
  assert loss() == pytest.approx(train[18]["loss"], rel=1e-3)
  box = page.locator(".chart svg").nth(1).bounding_box()
  page.mouse.move(box["x"] + 49, box["y"] + 60)
  assert page.get_attribute("#cursor", "aria-valuetext") == "step 1"
  assert loss() == pytest.approx(train[1]["loss"], rel=1e-3), "of another chart than hovered"
  page.select_option("#smooth", "0.97")
  assert loss() == pytest.approx(train[1]["loss"], rel=1e-3), "the first value is its own average"
  line = page.locator(".chart >> nth=0 >> path.line:not(.raw) >> nth=0")
  before = line.get_attribute("d")
  page.click(".chart button")
  assert page.get_attribute(".chart button", "aria-pressed") == "true"
  assert line.get_attribute("d") != before


@pytest.mark.slow
def test_the_timeline_is_read_by_keyboard(visit, report):
  page = visit(report)
  page.focus("#timeline input[type=range]")
  page.keyboard.press("ArrowRight")
  assert "training step 1, 2." in page.inner_text("#timeline output")
  page.keyboard.press("End")
  assert "checkpoint of step 30, waited for, 0.70 s" in page.inner_text("#timeline output")


@pytest.mark.slow
def test_numbers_as_a_table(visit, report):
  page = visit(report)
  page.click("#curves summary")
  page.locator("#curves table").first.wait_for()  # they are made when they are first opened
  assert page.locator("#curves table").count() == 3
  assert page.locator("#curves table").first.locator("tbody tr").count() == 30


# --- samples -------------------------------------------------------------------------------------


def sample(folder, step, prompt, number=0):
  path = folder / f"samples/step_{step:06d}/host_0000_of_0001.jsonl"
  rows = [json.loads(line) for line in path.read_text().splitlines()]
  [found] = [r for r in rows if (r["prompt_index"], r["sample_index"]) == (prompt, number)]
  return found


def test_samples_lie_beside_each_other(visit, report):
  page = visit(report)
  for step in (10, 20, 30):
    expected = sample(report.parent, step, 0)["generated_text"]
    assert expected in texts(page, ".answer .text")
  assert texts(page, ".answer-title") == ["step 10", "step 20", "step 30"]
  page.focus(".list")
  page.keyboard.press("End")
  has(page, "#prompt-title", "Prompt 39")
  active = page.get_attribute(".list", "aria-activedescendant")
  assert "Question 39" in page.inner_text(f"#{active}")
  assert page.get_attribute(f"#{active}", "aria-posinset") == "40"
  assert page.locator(".item").count() < 25, "only what is seen exists"
  page.select_option("[data-choice=sample]", "all")
  page.locator(".answer").nth(5).wait_for()
  assert sample(report.parent, 20, 39, 1)["generated_text"] in texts(page, ".answer .text")
  assert page.url.endswith("#prompt-39")


@pytest.mark.slow
def test_an_address_names_a_prompt(visit, report):
  page = visit(report, fragment="#prompt-17")
  has(page, "#prompt-title", "Prompt 17")
  assert "Question 17" in page.inner_text(".prompt")


@pytest.mark.slow
def test_differences_are_those_of_the_words(visit, report):
  page = visit(report)
  page.select_option("[data-choice=base]", "before")
  page.wait_for_selector(".answer ins")
  for column, step in enumerate((10, 20, 30)):
    cell = page.locator(".answer .text").nth(column)
    new = sample(report.parent, step, 0)["generated_text"]
    kept = "n => n.tagName !== 'DEL'", "n => n.tagName !== 'INS'"
    joined = "(e) => [...e.childNodes].filter({}).map(n => n.textContent).join('').split(/\\s+/)"
    words = [[w for w in cell.evaluate(joined.format(k)) if w] for k in kept]
    assert words[0] == new.split(), "without what is gone: the answer"
    if column:
      old = sample(report.parent, (10, 20)[column - 1], 0)["generated_text"].split()
      assert words[1] == old, "without what is new: the one before"


@pytest.mark.slow
def test_search_filter_and_sort(visit, report):
  page = visit(report)
  words = [
    set(sample(report.parent, step, p, s)["generated_text"].split())
    for p in range(40) for s in range(2) for step in (10, 20, 30)
  ]  # fmt: skip
  wanted = next(w for w in words[0] if len(w) > 4 and sum(w in other for other in words) < 30)
  hits = [p for p in range(40) if any(wanted in " ".join(w) for w in words[6 * p : 6 * p + 6])]
  page.fill("#find", wanted.upper())
  expected = f"{len(hits)} of 40 prompts" if len(hits) < 40 else "40 prompts"
  has(page, ".status", expected)
  assert wanted in [m.lower() for m in texts(page, "mark")]
  page.fill("#find", "no answer says this")
  has(page, ".status", "0 of 40 prompts")
  assert page.inner_text("#prompt-title") == "No prompt"
  page.fill("#find", "")
  has(page, ".status", "40 prompts")
  rows = [[sample(report.parent, 30, p, s) for s in range(2)] for p in range(40)]
  cut = sum(any(r["finish_reason"] == "length" for r in pair) for pair in rows)
  page.select_option("label:has-text('Show') select", "cut")
  assert page.inner_text(".status") == f"{cut} of 40 prompts"
  page.select_option("label:has-text('Show') select", "any")
  page.select_option("label:has-text('Sort by') select", "shortest")
  means = [sum(r["generated_token_count"] for r in pair) for pair in rows]
  assert texts(page, ".item-number")[0] == str(means.index(min(means)))


@pytest.mark.slow
def test_texts_that_are_left_out_are_named(visit, folder):
  same = ("Tell me in one sentence:",) * 60
  made = make(folder / "large", prompts=60, samples=1, tokens=8000, at=(3,), steps=3, texts=same)
  out = made / "report.html"
  write_report([made], out, 400_000)
  page = visit(out, fragment="#prompt-59")
  has(page, "#prompt-title", "Prompt 59")
  assert f"are in {made}/samples/" in page.inner_text("#samples .note")
  assert "it is in samples/step_000003/" in page.inner_text(".answer .text")
  page.goto(out.as_uri() + "#prompt-0")
  has(page, "#prompt-title", "Prompt 0")
  page.wait_for_timeout(100)
  assert len(page.inner_text(".answer .text")) > 5000
  first = page.inner_text(".item >> nth=0")
  assert first.startswith("0 … 0: what is a "), "what all prompts begin with is left out"


def test_runs_are_compared(visit, compared):
  page = visit(compared)
  assert page.inner_text("h1") == "2 runs compared"
  assert texts(page, "#glance thead th") == [" made", " other"]
  differ = texts(page, "#settings .settings >> nth=0 >> th[scope=row]")
  assert "train.learning_rate" in differ and "simpo.beta" not in differ
  assert page.locator(".chart").first.locator("path.line.c1").count() > 0
  page.wait_for_selector(".answer .text")
  assert texts(page, ".answer-title") == [" made, step 30", " other, step 20"]
  page.uncheck("#curves .chips input >> nth=1")
  assert page.locator(".chart").first.locator("path.line.c1").count() == 0


@pytest.mark.slow
@pytest.mark.parametrize("kept", ["run.json", "config.json", "metrics.jsonl", "samples"])
def test_any_one_file_is_enough(visit, folder, kept):
  made, alone = make(folder / f"of_{kept}"), folder / f"only_{kept}"
  alone.mkdir()
  (made / kept).rename(alone / kept)
  page = visit(written(alone))
  assert "Not all could be read" in page.inner_text("#alerts")
  assert len(texts(page, "main > section")) == 9


@pytest.mark.slow
def test_a_run_that_was_killed_says_so(visit, folder):
  made = make(folder / "killed", status="running")
  hour_ago = time.time() - 3600
  os.utime(made / "run.json", (hour_ago, hour_ago))
  page = visit(written(made))
  assert "has probably been killed" in page.inner_text("#alerts")
  assert page.inner_text("#lead").startswith("silent")


# --- hostile texts -------------------------------------------------------------------------------


def test_hostile_texts_are_inert(visit, attacked, folder):
  clean = visit(written(make(folder / "clean", len(ATTACKS))))
  page = visit(attacked)
  kinds = "[...new Set([...document.querySelectorAll('*')].map(e => e.localName))].sort()"
  everything = page.evaluate(kinds)
  assert set(everything) <= {*clean.evaluate(kinds), "br", "p"}
  for number in range(len(ATTACKS)):
    page.evaluate(f"location.hash = '#prompt-{number}'")
    has(page, "#prompt-title", f"Prompt {number}")
    page.wait_for_selector(".answer .text")
    assert f"Question {number}:" in page.inner_text(".prompt"), "all of the text is there"
  shown = page.inner_text(".prompt")
  page.evaluate("location.hash = '#prompt-17'")
  has(page, "#prompt-title", "Prompt 17")
  assert "⟨U+202E⟩ turned around ⟨U+2066⟩ hidden ⟨U+200B⟩" in page.inner_text(".prompt")
  assert "\U0001f600 e\u0301" in shown
  page.fill("#find", ATTACKS[0])
  page.wait_for_selector(".item")
  page.select_option("[data-choice=base]", "before")
  page.click("#settings summary")
  page.click("#curves summary")
  page.wait_for_timeout(300)
  assert page.evaluate("window.attacked") is None
  assert ATTACKS[2] in page.inner_text("#lead")
  assert set(page.evaluate(kinds)) <= {*everything, "mark", "ins", "del", "caption", "rect"}


@pytest.mark.slow
def test_the_policy_stops_what_would_be_put_in(browser, report):
  page = browser.new_page()
  page.goto(report.as_uri())
  refused = page.evaluate(
    "() => { try { document.body.innerHTML = '<b>x</b>'; return false } catch { return true } }"
  )
  page.close()
  assert refused


# --- for everybody -------------------------------------------------------------------------------


def faults(page):
  """Serious faults that axe finds."""
  axe = pytest.importorskip("axe_playwright_python")
  page.evaluate((pathlib.Path(axe.__file__).parent / "axe.min.js").read_text())
  found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
  return [
    (f["id"], f["impact"], [n["html"][:200] for n in f["nodes"]][:3])
    for f in found
    if f["impact"] in ("serious", "critical", "moderate")
  ]


def opened(page):
  """Everything that can be opened is, and differences are shown."""
  page.wait_for_selector(".answer .text")
  page.select_option("[data-choice=base]", "before")
  page.wait_for_selector(".answer ins")
  for summary in page.locator("summary").all():
    summary.click()
  return page


@sweep("scheme", ["light", "dark"])
def test_accessible_on_a_desktop(visit, report, scheme):
  assert faults(opened(visit(report, DESKTOP, scheme))) == []


@pytest.mark.slow
def test_accessible_on_a_phone_in_the_dark(visit, attacked):
  assert faults(opened(visit(attacked, PHONE, "dark"))) == []


@pytest.mark.slow
def test_accessible_when_compared(visit, compared):
  assert faults(opened(visit(compared))) == []


@sweep("viewport", [PHONE, NARROW], ids=["390", "360"])
def test_nothing_is_wider_than_a_phone(visit, report, attacked, compared, viewport):
  for path in (report, attacked, compared):
    page = visit(path, viewport)
    page.wait_for_selector(".answer .text")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


@pytest.mark.slow
def test_colors_follow_the_system_or_the_reader(visit, report):
  page = visit(report, scheme="dark")
  back = "getComputedStyle(document.documentElement).backgroundColor"
  dark = page.evaluate(back)
  assert sum(map(int, dark[4:-1].split(","))) < 150
  page.select_option("#theme", "light")
  assert sum(map(int, page.evaluate(back)[4:-1].split(","))) > 700
  page.select_option("#theme", "dark")
  assert page.evaluate(back) == dark
  page.emulate_media(media="print")
  assert sum(map(int, page.evaluate(back)[4:-1].split(","))) > 700, "paper is white"


@pytest.mark.slow
def test_it_opens_quickly(visit, folder, record_property):
  """A twelfth of the full size; bench/report.py times the whole."""
  made = make(folder / "wide", prompts=1024, samples=1, tokens=200, at=(3, 6), steps=6)
  path = written(made)
  page = visit(path)
  page.wait_for_selector(".answer .text")
  ready = page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
  record_property("seconds", ready / 1000)
  assert page.locator(".item").count() < 25
