"""The ledger: how hosts agree, inside the program, on what a launch is.

Each process brings one int32 row. The program gathers the rows before its
switch; only if all agree does the wanted mode run. The gathered rows come back
in the report, so a disagreement is one clear error on every host.
"""

import enum
import hashlib

import numpy as np

FIELDS = ("mode", "launch", "digest_low", "digest_high", "stop", "save")
AGREE = 4  # the first so many fields must be equal on all hosts
STOP = FIELDS.index("stop")  # not zero on any host: the launch does nothing, the run ends
SAVE = FIELDS.index("save")  # not zero on any host: a checkpoint follows on all


class Mode(enum.IntEnum):
  """The branches of the one program, in the order of its switch."""

  TRAIN = 0
  GENERATE = 1
  EVALUATE = 2
  ABORT = 3


def digest(*parts) -> tuple[int, int]:
  """Two int32 words that stand for all the parts: strings, arrays, nested tuples of them.

  Hosts that read another config, other data or other prompts differ in it.
  """
  total = hashlib.sha256()

  def add(part):
    if isinstance(part, (list, tuple)):
      total.update(b"(%d" % len(part))
      for item in part:
        add(item)
    elif isinstance(part, str):
      total.update(b"s" + part.encode())
    else:
      array = np.asarray(part)
      total.update(f"{array.dtype}{array.shape}".encode() + array.tobytes())

  add(parts)
  words = np.frombuffer(total.digest()[:8], np.int32)
  return int(words[0]), int(words[1])


def make_row(
  mode: Mode, launch: int, digest_words: tuple[int, int], stop: bool, save: bool = False
) -> np.ndarray:
  """One process's row, int32 `[6]`; see `FIELDS`."""
  return np.asarray([int(mode), launch, *digest_words, int(stop), int(save)], np.int32)


def describe_disagreement(rows: np.ndarray) -> str:
  """One line that names each host that differs from host 0, and in what."""

  def show(name, value):
    known = name == "mode" and value in list(Mode)
    return Mode(value).name.lower() if known else str(value)

  parts = []
  for host, row in enumerate(rows[1:], start=1):
    differs = [
      f"{name} {show(name, row[i])} (host 0: {show(name, rows[0, i])})"
      for i, name in enumerate(FIELDS[:AGREE])
      if row[i] != rows[0, i]
    ]
    if differs:
      parts.append(f"host {host} wanted {', '.join(differs)}")
  return "; ".join(parts)
