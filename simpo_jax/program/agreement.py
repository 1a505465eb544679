"""Whether all hosts agree on a launch: decided on device, reported on every host if not."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from simpo_jax.program.ledger import AGREE, DATA, STOP, Mode


def agreed_mode(rows: jax.Array) -> jax.Array:
  """The mode that all hosts want, int32 []; ABORT if they differ in anything that must be equal.

  A stop that any host asks for aborts the launch on every host, too.

  Args:
    rows: int32 `[hosts, fields]`, every host's row of the ledger.
  """
  agreed = jnp.all(rows[:, :AGREE] == rows[0, :AGREE])
  stop = jnp.any(rows[:, STOP] != 0)
  return jnp.where(agreed & ~stop, rows[0, 0], Mode.ABORT)


def describe_disagreement(rows: np.ndarray) -> str:
  """One line that names each host that differs from host 0, and in what.

  Other modes have other data: that is not said then.
  """

  def mode(value):
    return Mode(value).name.lower() if value in list(Mode) else str(value)

  shown = {
    "mode": lambda row: mode(row[0]),
    "launch": lambda row: str(row[1]),
    "digest": lambda row: row[2:4].tobytes().hex(),
    "data": lambda row: row[DATA].tobytes().hex(),
  }
  parts = []
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
  """One line that names each host whose items are not host 0's, and the first such item.

  Args:
    everyone: each host's `Contents.items`.
  """
  parts = []
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
