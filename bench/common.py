"""Shared code of the benchmarks: timing, hardware limits, reports."""

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

JSON = flags.DEFINE_string("json", None, "write the results to this file, with versions and device")


def seconds(f: Callable[..., object], *args: object, runs: int = 5, warm: int = 1) -> float:
  """Returns the median wall time of `f(*args)`, result included, after `warm` untimed runs."""
  for _ in range(warm):
    jax.block_until_ready(f(*args))
  times = []
  for _ in range(runs):
    start = time.perf_counter()
    jax.block_until_ready(f(*args))
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def peak_rss() -> int:
  """Returns the peak resident memory of this process in bytes."""
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def say(text: str) -> None:
  """Prints progress to stderr."""
  print(text, file=sys.stderr, flush=True)


def with_user_errors(main: Callable[[list[str]], None]) -> Callable[[list[str]], None]:
  """Wraps a benchmark's `main` for `app.run`: a UserError ends it with its message alone."""

  def wrapped(argv: list[str]) -> None:
    try:
      main(argv)
    except UserError as e:
      sys.exit(f"error: {e}")

  # --help shows only key flags of the main module: make --json one.
  flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[JSON.name])
  return wrapped


def read_bandwidth() -> float:
  """Measures the read bandwidth of a sum over a large array, in bytes per second."""
  size = 2**28 if jax.default_backend() == "cpu" else 2**30
  x = jnp.ones(size // 4, jnp.float32)
  return size / seconds(jax.jit(jnp.sum), x)


def machine() -> dict[str, str]:
  """Describes the environment of a measurement: device, package versions, date."""
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
  """Returns the fields that the `--json` files of all benchmarks have in common.

  `ratio` and `fraction_of_floor` are higher if ours is faster, whatever the unit.

  Args:
    unit: of `ours`, `theirs` and `floor`.
    rows: the table's rows, each a dict by column.
    ours, theirs: the headline figure of each side; None if there is none.
    peer: the software that `theirs` was measured with.
    floor: the hardware limit, measured in the same run.
    smaller_is_better: True for times, False for rates.
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
  """Prints the rows as tables and writes `result` to `--json`, both with the environment.

  Consecutive rows with the same columns form one table.
  """
  environment = machine()
  if JSON.value:
    device = {name: environment[name] for name in ("device", "devices", "date")}
    versions = {name: text for name, text in environment.items() if name not in device}
    text = json.dumps({**result, **device, "versions": versions}, indent=2, default=float)
    pathlib.Path(JSON.value).write_text(text + "\n")
  for columns, rows in itertools.groupby(result["rows"], tuple):
    table = Table(title=title, caption=", ".join(f"{k} {v}" for k, v in environment.items()))
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
