"""What the benchmarks share: honest timing, the machine's own limits, reports."""

import datetime
import itertools
import json
import pathlib
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from simpo_jax.errors import UserError

JSON = flags.DEFINE_string("json", None, "a file for the figures, with versions and device")


def seconds(f: Callable[..., object], *args: object, runs: int = 5, warm: int = 1) -> float:
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


def answering(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
  """A benchmark's `main` for `app.run`; a user's mistake ends it with its message."""

  def answered(argv: list[str]) -> None:
    try:
      main(argv)
    except UserError as e:
      sys.exit(f"error: {e}")

  # A program's --help has the flags of its own module, and those that are registered for it.
  flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[JSON.name])
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


def result(
  name: str,
  unit: str,
  rows: list[dict[str, Any]],
  *,
  ours: float | None = None,
  theirs: float | None = None,
  peer: str | None = None,
  floor: float | None = None,
  smaller_is_better: bool = False,
) -> dict[str, Any]:
  """What every benchmark's `--json` holds, beside figures of its own.

  Args:
    unit: of `ours`, `theirs` and `floor`.
    rows: of the table, a dict each; any floats.
    ours, theirs: the one figure that stands for the whole; None where there is none.
    peer: what `theirs` was measured on.
    floor: what the machine's own limits, measured in the same run, allow.
    smaller_is_better: as of seconds. `ratio` and `fraction_of_floor` grow with our speed.
  """

  def over(a: float | None, b: float | None) -> float | None:
    if a is None or b is None:
      return None
    return b / a if smaller_is_better else a / b

  return {
    "name": name,
    "unit": unit,
    "ours": ours,
    "theirs": theirs,
    "ratio": over(ours, theirs),
    "peer": peer,
    "floor": floor,
    "fraction_of_floor": over(ours, floor),
    "rows": rows,
  }


def report(title: str, result: dict[str, Any]) -> None:
  """Prints the rows as tables, and writes all of it where `--json` says; both name the machine.

  Rows that follow each other with the same columns are one table.
  """
  where = machine()
  if JSON.value:
    place = {name: where[name] for name in ("device", "devices", "date")}
    versions = {name: text for name, text in where.items() if name not in place}
    text = json.dumps({**result, **place, "versions": versions}, indent=2, default=float)
    pathlib.Path(JSON.value).write_text(text + "\n")
  for columns, rows in itertools.groupby(result["rows"], tuple):
    table = Table(title=title, caption=", ".join(f"{k} {v}" for k, v in where.items()))
    for name in columns:
      table.add_column(name.replace("_", " "), justify="left" if name == columns[0] else "right")
    for row in rows:
      table.add_row(*map(_text, row.values()))
    Console().print(table)


def _text(value: object) -> str:
  if value is None:
    return "-"
  if isinstance(value, float | np.floating):
    return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
  return str(value)
