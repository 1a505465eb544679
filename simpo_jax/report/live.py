"""Updates report.html of a run in progress, in a background thread.

The thread only reads the workdir's files and never touches a device. It is busy for at most a
twentieth of the time, and reports its first error only.
"""

import contextlib
import pathlib
import sys
import threading
import time
from collections.abc import Iterator

from simpo_jax import storage
from simpo_jax.errors import one_line
from simpo_jax.report.page import write_report
from simpo_jax.settings import ReportSettings

NAME = "report.html"
_JOIN_SECONDS = 10.0  # that the end of a run waits for the last update
_MIN_PAUSE_FACTOR = 20  # pause between updates, as a multiple of the last one's duration
_FIRST_SECONDS = 10.0  # until the first update


@contextlib.contextmanager
def reporting(folder: storage.Path, options: ReportSettings, writes: bool) -> Iterator[None]:
  """Updates the report while the body runs, and once more when it ends or raises.

  Args:
    folder: the workdir; nothing is written if it is in a bucket.
    options: `config.report`.
    writes: whether this process writes the report.
  """
  if not (writes and options.write and isinstance(folder, pathlib.Path)):
    yield
    return
  ended = threading.Event()
  thread = threading.Thread(
    target=_update_until, args=(folder, options, ended), name="report", daemon=True
  )
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join(_JOIN_SECONDS)
    if thread.is_alive():
      _print_problem(f"is not ready; write it with: python -m simpo_jax.report {folder}")


def _update_until(folder: pathlib.Path, options: ReportSettings, ended: threading.Event) -> None:
  known, reported, last = {}, False, False
  every = options.every_seconds or None
  pause = every and min(every, _FIRST_SECONDS)
  while not last:
    last = ended.wait(pause)
    start = time.monotonic()
    if not (folder / "run.json").exists():  # a run that fails to start leaves no files behind
      continue
    try:
      write_report([folder], folder / NAME, options.max_mib * 2**20, known)
    except Exception as e:
      if not reported:
        _print_problem(f"cannot be written ({one_line(e)}); the run continues without it")
      reported = True
    pause = every and max(every, _MIN_PAUSE_FACTOR * (time.monotonic() - start))


def _print_problem(text: str) -> None:
  print(f"{NAME} {text}", file=sys.stderr, flush=True)
