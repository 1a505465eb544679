"""Identifies the files of a prepared dataset's source, to detect whether they have changed."""

import os
from collections.abc import Sequence
from typing import Any

from simpo_jax.data.file_chunks import File
from simpo_jax.storage.digests import sha256

Stamp = list[Any]  # [name, bytes, mtime in ns, sha256]; of earlier versions without sha256
SAME, CHANGED, UNKNOWN = "same", "changed", "unknown"


def file_stamps(files: Sequence[File]) -> list[Stamp]:
  """Returns the stamp of each file."""
  return [[*_cheap_stamp(file), sha256(file.path)] for file in files]


def compare(files: Sequence[File], stamps: Any) -> str:
  """Returns whether files are still those that were stamped: SAME, CHANGED or UNKNOWN.

  A file with the same name, size and modification time counts as the same; otherwise its content
  decides, if its stamp has a digest of it.
  """
  if not isinstance(stamps, list) or len(files) != len(stamps):
    return CHANGED
  found = [_compare_one(file, stamp) for file, stamp in zip(files, stamps, strict=True)]
  return next((result for result in (CHANGED, UNKNOWN) if result in found), SAME)


def _compare_one(file: File, stamp: Any) -> str:
  cheap = _cheap_stamp(file)
  if not isinstance(stamp, list) or stamp[:2] != cheap[:2]:
    return CHANGED
  if stamp[2:3] == cheap[2:]:
    return SAME
  if len(stamp) < 4:
    return UNKNOWN
  return SAME if stamp[3] == sha256(file.path) else CHANGED


def _cheap_stamp(file: File) -> Stamp:
  status = os.stat(file.path)
  return [file.name, status.st_size, status.st_mtime_ns]
