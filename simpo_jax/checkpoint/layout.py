"""A checkpoint's folder: its name, what it says of itself, and whether it is whole.

    checkpoints/step_000012/      after training step 12
    checkpoints/step_000012.1/    and after the first of the launches that follow it

`manager.py` writes them and reads their arrays, and a rename commits them; in a
bucket, which knows no rename, a last object does. In each lies `simpo_jax.json`: where the
run stood, what it was made of, and the size and SHA-256 (of an object, the bucket's own
checksum) of every file beside it. It is written before the commit, so a checkpoint has it
or is none.
"""

import contextlib
import hashlib
import json
import re
from typing import Any, NamedTuple

from simpo_jax import storage
from simpo_jax.errors import one_line
from simpo_jax.storage import digests
from simpo_jax.storage.paths import escapes_folder

METADATA = "simpo_jax.json"
TEMPORARY = "orbax-checkpoint-tmp"  # in the names of those that are not committed yet
_NAME = re.compile(r"step_(\d{6,})(?:\.(\d+))?")


class Position(NamedTuple):
  """How far a run has come."""

  step: int = 0  # training steps done
  done: int = 0  # of the launches that follow this step

  @property
  def name(self) -> str:
    """Of the checkpoint's folder."""
    return f"step_{self.step:06d}" + (f".{self.done}" if self.done else "")


def positions(folder: storage.Path) -> list[Position]:
  """Of the committed checkpoints in a folder, in order."""
  matches = [_NAME.fullmatch(name) for name in storage.names(folder)]
  return sorted(
    Position(int(m[1]), int(m[2] or 0)) for m in matches if m and storage.committed(folder / m[0])
  )


def to_remove(found: list[Position], keep: int, keep_every: int) -> list[Position]:
  """Those, of checkpoints in their order, that are not to be kept; see `Checkpoints`."""
  old = found[:-keep]
  return [p for p in old if p.done or not keep_every or p.step % keep_every]


def read_metadata(folder: storage.Path) -> dict[str, Any]:
  """What a checkpoint says of itself.

  Raises:
    ValueError, OSError: it is damaged, or none of ours.
  """
  if not (folder / METADATA).is_file():
    raise FileNotFoundError(f"{METADATA} is missing")
  try:
    metadata = json.loads((folder / METADATA).read_text())
    if metadata == with_checksum(metadata) and _is_metadata(metadata):
      return metadata
  except (LookupError, TypeError, AttributeError, RecursionError):
    pass
  raise ValueError("not as it was written")


def _is_metadata(metadata: dict[str, Any]) -> bool:
  """Whether what is read of it has its types; anybody can seal anything."""
  numbers = [metadata["metrics_bytes"], *Position(**metadata["position"])]
  files = metadata["files"].values()
  numbers += [size for size, _ in files]
  return (
    all(type(digest) is str for _, digest in files)
    and all(type(n) is int and n >= 0 for n in numbers)
    and all(type(metadata[name]) is dict for name in ("arrays", "identity"))
    and all(type(metadata[name]) is list for name in ("launches", "bad_steps"))
  )


def with_checksum(metadata: dict[str, Any]) -> dict[str, Any]:
  """What a checkpoint says, with the SHA-256 of it all."""
  rest = {name: value for name, value in metadata.items() if name != "sha256"}
  text = json.dumps(rest, sort_keys=True)
  return {**rest, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def verify(folder: storage.Path, share: int = 0, shares: int = 1) -> str | None:
  """What is wrong with the files of a checkpoint; None if they are as they were written.

  Args:
    share, shares: only every so many files are read, from this one on.
  """
  try:
    expected = read_metadata(folder)["files"]
  except (*storage.failures(), ValueError) as e:
    return f"{METADATA}: {one_line(e)}"
  sizes = storage.sizes(folder)
  for name, (size, _) in expected.items():
    if escapes_folder(folder, name):
      return f"{name!r} lies outside of it, or is a link out of it"
    if name not in sizes:
      return f"{name} is missing"
    if sizes[name] != size:
      return f"{name} has {sizes[name]} bytes, not {size}"
  wanted = {name: expected[name][1] for name in sorted(expected)[share::shares]}
  found = digests.of_files(folder, wanted, like=wanted)
  return next((f"{n} has other content" for n in wanted if found[n] != wanted[n]), None)


def clean(folder: storage.Path, damaged: list[Position]) -> None:
  """Removes what a killed save left, and puts damaged checkpoints out of the way."""
  for name in storage.names(folder):
    if TEMPORARY in name or (_NAME.fullmatch(name) and not storage.committed(folder / name)):
      with contextlib.suppress(*storage.failures()):
        storage.remove_tree(folder / name)
  for position in damaged:
    target = folder / f"{position.name}.damaged"
    storage.remove_tree(target)
    storage.move(folder / position.name, target)
