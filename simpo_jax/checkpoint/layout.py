"""A checkpoint's folder: its name, its metadata, and verification of its files.

    checkpoints/step_000012/      after training step 12
    checkpoints/step_000012.1/    after the first of the launches that follow this step

`manager.py` writes checkpoints and reads their arrays. A rename commits them; in a bucket, which
has no rename, a final object does. `simpo_jax.json` in the folder has the position of the run,
its identity, and size and SHA-256 (in a bucket, the bucket's checksum) of every other file. It is
written before the commit, so every committed checkpoint has it.
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
TEMPORARY = "orbax-checkpoint-tmp"  # part of the names of uncommitted checkpoints
_NAME = re.compile(r"step_(\d{6,})(?:\.(\d+))?")


class Position(NamedTuple):
  """How many steps and launches of the schedule are done."""

  step: int = 0  # training steps done
  done: int = 0  # launches done of those that follow this step

  @property
  def name(self) -> str:
    """Name of the checkpoint's folder."""
    return f"step_{self.step:06d}" + (f".{self.done}" if self.done else "")


def positions(folder: storage.Path) -> list[Position]:
  """Positions of the committed checkpoints in a folder, in order."""
  matches = [_NAME.fullmatch(name) for name in storage.names(folder)]
  return sorted(
    Position(int(m[1]), int(m[2] or 0)) for m in matches if m and storage.committed(folder / m[0])
  )


def to_remove(found: list[Position], keep: int, keep_every: int) -> list[Position]:
  """Positions of the checkpoints to remove, given all in order; see `Checkpoints`."""
  old = found[:-keep]
  return [p for p in old if p.done or not keep_every or p.step % keep_every]


def read_metadata(folder: storage.Path) -> dict[str, Any]:
  """Reads the metadata of a checkpoint, `simpo_jax.json`.

  Raises:
    ValueError, OSError: it is missing or damaged.
  """
  if not (folder / METADATA).is_file():
    raise FileNotFoundError(f"{METADATA} is missing")
  try:
    metadata = json.loads((folder / METADATA).read_text())
    if metadata == with_checksum(metadata) and _has_valid_types(metadata):
      return metadata
  except (LookupError, TypeError, AttributeError, RecursionError):
    pass
  raise ValueError("not as it was written")


def _has_valid_types(metadata: dict[str, Any]) -> bool:
  """Whether the fields that are read have the right types; the checksum does not ensure it."""
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
  """Metadata with the SHA-256 of its own content as an additional field."""
  rest = {name: value for name, value in metadata.items() if name != "sha256"}
  text = json.dumps(rest, sort_keys=True)
  return {**rest, "sha256": hashlib.sha256(text.encode()).hexdigest()}


def verify(folder: storage.Path, share: int = 0, shares: int = 1) -> str | None:
  """Describes what is wrong with a checkpoint's files; None if they are intact.

  Args:
    share, shares: the content of files number share, share + shares, ... is checked.
  """
  try:
    expected = read_metadata(folder)["files"]
  except (*storage.failures(), ValueError) as e:
    return f"{METADATA}: {one_line(e)}"
  sizes = storage.sizes(folder)
  for name, (size, _) in expected.items():
    if escapes_folder(folder, name):
      return f"{name!r} is outside of the folder, or a link out of it"
    if name not in sizes:
      return f"{name} is missing"
    if sizes[name] != size:
      return f"{name} has {sizes[name]} bytes, not {size}"
  wanted = {name: expected[name][1] for name in sorted(expected)[share::shares]}
  found = digests.of_files(folder, wanted, like=wanted)
  return next((f"{n} has other content" for n in wanted if found[n] != wanted[n]), None)


def clean(folder: storage.Path, damaged: list[Position]) -> None:
  """Removes uncommitted checkpoints, and renames damaged ones to NAME.damaged."""
  for name in storage.names(folder):
    if TEMPORARY in name or (_NAME.fullmatch(name) and not storage.committed(folder / name)):
      with contextlib.suppress(*storage.failures()):
        storage.remove_tree(folder / name)
  for position in damaged:
    target = folder / f"{position.name}.damaged"
    storage.remove_tree(target)
    storage.move(folder / position.name, target)
