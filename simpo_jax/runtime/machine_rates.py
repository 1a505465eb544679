"""What this machine's CPU reaches: the rates that least times of a run on it follow from."""

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

READ_BYTES = 2**26  # of the measured read; fewer weights than that may lie in a CPU's cache
_RUNS = 5


@functools.cache
def measured_rates(moment: str) -> dict[str, Any]:
  """What this machine's CPU reaches in numpy, float32: the best of some short runs.

  Args:
    moment: of the run; each is measured once in a process.
  """
  a, vector = np.ones((768, 768), np.float32), np.ones(4096, np.float32)
  matrix = np.ones((READ_BYTES // 4 // vector.size, vector.size), np.float32)
  return {
    "flops": 2 * a.shape[0] ** 3 / _best(lambda: a @ a),
    "bytes_per_second": matrix.nbytes / _best(lambda: matrix @ vector),
    "source": f"numpy on this machine, {moment}",
  }


def better(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
  """The best of two measurements, as other work on the machine slows either."""
  best = {name: max(a[name], b[name]) for name in ("flops", "bytes_per_second")}
  return {**best, "source": a["source"] if a["flops"] >= b["flops"] else b["source"]}


def _best(f: Callable[[], Any]) -> float:
  times = []
  for _ in range(_RUNS):
    start = time.perf_counter()
    f()
    times.append(time.perf_counter() - start)
  return min(times)
