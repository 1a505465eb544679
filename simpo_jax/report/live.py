"""report.html of a run in progress, kept up to date in a thread that nothing waits for.

The thread reads the workdir like any reader. It launches nothing, takes at most a twentieth of
the time, and what goes wrong in it is told once.
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
_PATIENCE = 10.0  # seconds that a run's end waits for the last rewriting
_SPARE = 20  # times as long as a rewriting took until the next
_SOON = 10.0  # seconds until the first


@contextlib.contextmanager
def reporting(folder: storage.Path, options: ReportSettings, writes: bool) -> Iterator[None]:
  """Rewrites the report while the body runs, and once more when it ends, however it does.

  Args:
    folder: the workdir.
    options: `config.report`.
    writes: whether this process does; none does in a bucket.
  """
  if not (writes and options.write and isinstance(folder, pathlib.Path)):
    yield
    return
  ended = threading.Event()
  thread = threading.Thread(target=_keep, args=(folder, options, ended), name="report", daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join(_PATIENCE)
    if thread.is_alive():
      _tell(f"is not ready; write it with: python -m simpo_jax.report {folder}")


def _keep(folder: pathlib.Path, options: ReportSettings, ended: threading.Event) -> None:
  known, told, last = {}, False, False
  every = options.every_seconds or None
  pause = every and min(every, _SOON)
  while not last:
    last = ended.wait(pause)
    start = time.monotonic()
    if not (folder / "run.json").exists():  # a start that fails leaves nothing
      continue
    try:
      write_report([folder], folder / NAME, options.max_mib * 2**20, known)
    except Exception as e:
      if not told:
        _tell(f"cannot be written ({one_line(e)}); the run goes on without it")
      told = True
    pause = every and max(every, _SPARE * (time.monotonic() - start))


def _tell(text: str) -> None:
  print(f"{NAME} {text}", file=sys.stderr, flush=True)
