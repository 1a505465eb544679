"""Agreement of all hosts on a launch: decided on device; differences are reported on every host."""

import itertools
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int32

from simpo_jax.program.ledger import AGREE, DATA, STOP, Mode


def agreed_mode(rows: Int32[Array, "hosts fields"]) -> Int32[Array, ""]:
  """Returns the mode that all hosts want, or ABORT if the hosts disagree.

  The launch is also aborted on every host if any host requests a stop.

  Args:
    rows: every host's row of the ledger.
  """
  agreed = jnp.all(rows[:, :AGREE] == rows[0, :AGREE])
  stop = jnp.any(rows[:, STOP] != 0)
  return jnp.where(agreed & ~stop, rows[0, 0], Mode.ABORT)


def describe_disagreement(rows: Int32[np.ndarray, "hosts fields"]) -> str:
  """Returns one line that names each host that differs from host 0, and the differing fields.

  `data` is not reported for a host whose mode differs, since it differs by mode anyway.
  """

  def mode(value: int) -> str:
    return Mode(value).name.lower() if value in list(Mode) else str(value)

  shown: dict[str, Callable[[np.ndarray], str]] = {
    "mode": lambda row: mode(int(row[0])),
    "launch": lambda row: str(row[1]),
    "digest": lambda row: row[2:4].tobytes().hex(),
    "data": lambda row: row[DATA].tobytes().hex(),
  }
  parts: list[str] = []
  for host, row in enumerate(rows[1:], start=1):
    differs = [
      f"{name} {show(row)} (host 0: {show(rows[0])})"
      for name, show in shown.items()
      if show(row) != show(rows[0]) and (name != "data" or row[0] == rows[0, 0])
    ]
    if differs:
      parts.append(f"host {host} wanted {', '.join(differs)}")
  return "; ".join(parts)


def describe_contents(everyone: list[list[tuple[str, str]]]) -> str:
  """Returns one line that names each host whose items differ from host 0's, and the first one.

  Args:
    everyone: each host's `Contents.items`.
  """
  parts: list[str] = []
  for host, theirs in enumerate(everyone[1:], start=1):
    differs = [
      (number, mine, its)
      for number, (mine, its) in enumerate(itertools.zip_longest(everyone[0], theirs), start=1)
      if mine != its
    ]
    if differs:
      number, mine, its = differs[0]
      names = [item[0] if item else "none" for item in (its, mine)]
      what = f"{names[0]} (host 0: {names[1]})"
      if names[0] == names[1]:
        what = f"{names[0]}, with other contents"
      parts.append(
        f"{len(differs)} of host {host}'s {len(theirs)} items differ from host 0's, the first is "
        f"item {number}: {what}"
      )
  return "; ".join(parts)
