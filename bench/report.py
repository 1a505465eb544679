"""Benchmarks the run report at full size: writing it, and opening and using it in Chromium.

  python bench/report.py

The figures in docs/performance.md were measured with this command.

The run is synthetic (tests/support/example_run.py): `--prompts` x `--samples` answers of exactly
`--tokens` tokens after each of the steps `--at`. `write` is the first write of the report by a
run's background thread, `rewrite` one with no new samples since. Opening is timed in new tabs of
one browser, from a local file in the page cache; the median of `--opens` is reported.
"""

import pathlib
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable

import common
from absl import app, flags

from simpo_jax.errors import UserError
from simpo_jax.report.page import MAX_BYTES, write_report

sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent / "tests"))

_PROMPTS = flags.DEFINE_integer("prompts", 1024, "prompts")
_SAMPLES = flags.DEFINE_integer("samples", 4, "answers per prompt")
_TOKENS = flags.DEFINE_integer("tokens", 2048, "tokens per answer")
_AT = flags.DEFINE_list("at", "50,100,150,200", "training steps after which samples were generated")
_OPENS = flags.DEFINE_integer("opens", 5, "how often the page is opened")
_SCRATCH = flags.DEFINE_string(
  "scratch", None, "folder for the run; default: the system's temporary folder"
)


def main(argv: list[str]) -> None:
  """Runs the benchmark and prints its table."""
  del argv
  from support.example_run import make

  with tempfile.TemporaryDirectory(
    prefix="report_", dir=_SCRATCH.value, ignore_cleanup_errors=True
  ) as name:
    folder = pathlib.Path(name)
    at = tuple(map(int, _AT.value))
    common.say("making the run")
    make(folder / "run", _PROMPTS.value, _SAMPLES.value, _TOKENS.value, at, max(at), full=True)
    rows = _write(folder / "run", folder / "report.html") + _open(folder / "report.html")
  size = f"{_PROMPTS.value} x {_SAMPLES.value} x {_TOKENS.value} tokens, {len(at)} generations"
  result = common.result("run report, written first", "seconds", rows, ours=rows[0]["seconds"])
  common.report(f"run report, {size}", result)


def _write(folder: pathlib.Path, out: pathlib.Path) -> list[dict]:
  known, rows = {}, []
  for case in ("write", "rewrite"):
    common.say(case)
    start, cpu = time.perf_counter(), time.process_time()
    write_report([folder], out, MAX_BYTES, known)
    seconds = time.perf_counter() - start
    rows.append(
      {
        "case": case,
        "seconds": seconds,
        "cpu_seconds": time.process_time() - cpu,
        "MiB": out.stat().st_size / 2**20,
      }
    )
  return rows


def _open(path: pathlib.Path) -> list[dict]:
  try:
    from playwright.sync_api import Page, expect, sync_playwright
  except ImportError as e:
    raise UserError("install playwright: pip install -e '.[dev]'") from e
  binary = shutil.which("chromium") or shutil.which("google-chrome")
  if binary is None:
    raise UserError("there is no Chromium on this machine; apt-get install chromium")
  times: dict[str, list[float]] = {}
  with sync_playwright() as driver:
    browser = driver.chromium.launch(executable_path=binary, args=["--no-sandbox"])
    for number in range(_OPENS.value):
      common.say(f"opening, {number + 1} of {_OPENS.value}")
      page = browser.new_page()
      page.set_default_timeout(300_000)

      def timed(case: str, act: Callable[[], None]) -> None:
        start = time.perf_counter()
        act()
        times.setdefault(case, []).append(time.perf_counter() - start)

      def opened(page: Page = page) -> None:
        page.goto(path.as_uri())
        page.wait_for_selector(".answer .text")

      timed("open: an answer is shown", opened)
      paint = page.evaluate("performance.getEntriesByName('first-contentful-paint')[0].startTime")
      times.setdefault("open: first paint", []).append(paint / 1000)

      def another(page: Page = page) -> None:
        page.evaluate("location.hash = '#prompt-100'")
        expect(page.locator("#prompt-title")).to_have_text("Prompt 100")

      def differences(page: Page = page) -> None:
        page.select_option("[data-choice=base]", "before")
        page.locator(".answer").nth(len(_AT.value) - 1).locator("ins").first.wait_for()

      def search(page: Page = page) -> None:
        page.fill("#find", "no answer says this")
        expect(page.locator(".status")).to_have_text(f"0 of {_PROMPTS.value:,} prompts")

      timed("another prompt", another)
      timed("its differences", differences)
      timed("search all texts", search)
      page.close()
    browser.close()
  return [
    {"case": case, "seconds": statistics.median(values), "cpu_seconds": None, "MiB": None}
    for case, values in times.items()
  ]


if __name__ == "__main__":
  app.run(common.with_user_errors(main))
