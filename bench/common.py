"""What the benchmarks share: honest timing, the machine's own limits, reports."""

import datetime
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from simpo_jax.errors import UserError


def seconds(f, *args, runs: int = 5, warm: int = 1) -> float:
  """Median wall time of `f(*args)`, its result awaited, after `warm` runs that do not count."""
  for _ in range(warm):
    jax.block_until_ready(f(*args))
  times = []
  for _ in range(runs):
    start = time.perf_counter()
    jax.block_until_ready(f(*args))
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def peak_rss() -> int:
  """Bytes of memory that this process held at most."""
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def say(text: str) -> None:
  """Tells how it goes, beside the result."""
  print(text, file=sys.stderr, flush=True)


def answering(main: Callable):
  """A benchmark's `main` for `app.run`; a user's mistake ends it with its message."""

  def answered(argv):
    try:
      main(argv)
    except UserError as e:
      sys.exit(f"error: {e}")

  return answered


def read_bandwidth() -> float:
  """Bytes per second that a sum over a large array reads."""
  size = 2**28 if jax.default_backend() == "cpu" else 2**30
  x = jnp.ones(size // 4, jnp.float32)
  return size / seconds(jax.jit(jnp.sum), x)


def machine() -> dict[str, str]:
  """The device and the versions that a figure belongs to."""
  import importlib.metadata

  versions = {}
  for name in ("jax", "jaxlib", "torch", "transformers", "trl"):
    try:
      versions[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      pass
  device = jax.devices()[0]
  return {
    "device": _cpu() if device.platform == "cpu" else device.device_kind,
    "devices": str(jax.device_count()),
    "python": platform.python_version(),
    **versions,
    "date": datetime.date.today().isoformat(),
  }


def _cpu() -> str:
  try:
    lines = subprocess.run(["lscpu"], capture_output=True, text=True, check=True).stdout
    fields = dict(line.split(":", 1) for line in lines.splitlines() if ":" in line)
    return f"{fields['CPU(s)'].strip()} cores of {fields['Model name'].strip()}"
  except (OSError, KeyError, subprocess.CalledProcessError):
    return platform.processor() or platform.machine()


def report(title: str, rows: list[dict], as_json: bool) -> None:
  """Prints one JSON object per row, or a table; both say on what machine."""
  where = machine()
  if as_json:
    for row in rows:
      print(json.dumps({**row, **where}))
    return
  table = Table(title=title, caption=", ".join(f"{k} {v}" for k, v in where.items()))
  for name in rows[0]:
    table.add_column(name.replace("_", " "), justify="left" if name == "case" else "right")
  for row in rows:
    table.add_row(*[_text(value) for value in row.values()])
  Console().print(table)


def _text(value) -> str:
  if value is None:
    return "-"
  if isinstance(value, float | np.floating):
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
  return str(value)
