"""Measured rates of this machine's CPU, from which a report derives lower bounds of times."""

import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np

READ_BYTES = 2**26  # read in a measurement; less than that may be read faster, from the cache
_REPEATS = 5


@functools.cache
def measured_rates(moment: str) -> dict[str, Any]:
  """Measures float32 flop/s and bytes/s of numpy on this machine: the best of a few repeats.

  Args:
    moment: of the measurement, for "source", such as "at the end of the run". Each moment is
      measured once.
  """
  a, vector = np.ones((768, 768), np.float32), np.ones(4096, np.float32)
  matrix = np.ones((READ_BYTES // 4 // vector.size, vector.size), np.float32)
  return {
    "flops": 2 * a.shape[0] ** 3 / _best_seconds(lambda: a @ a),
    "bytes_per_second": matrix.nbytes / _best_seconds(lambda: matrix @ vector),
    "source": f"numpy on this machine, {moment}",
  }


def better(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
  """The higher rates of two measurements: other work on the machine only lowers them."""
  best = {name: max(a[name], b[name]) for name in ("flops", "bytes_per_second")}
  return {**best, "source": a["source"] if a["flops"] >= b["flops"] else b["source"]}


def _best_seconds(f: Callable[[], Any]) -> float:
  times = []
  for _ in range(_REPEATS):
    start = time.perf_counter()
    f()
    times.append(time.perf_counter() - start)
  return min(times)
