"""Names of the files that a run writes into a workdir; no other file is ever moved or removed."""

import fnmatch
import re
from collections.abc import Sequence

from simpo_jax import storage
from simpo_jax.errors import UserError
from simpo_jax.storage.paths import brief

# What a run and its trackers write at the top level of a workdir.
RUN_FILES = (
  "config.json", "run.json", "metrics.jsonl", "report.html", "failure.json",
  "watchdog_host_*.txt", "samples", "evaluations", "checkpoints", "tensorboard", "tracking",
  "wandb", "profile", "adapter", "export", "attempts",
)  # fmt: skip
# Files not yet renamed to their final names; the last two patterns are of earlier versions.
_TEMPORARY = (".*.tmp", "*.json.tmp", "*.jsonl.tmp")
# In the folder of a step under `samples` or `evaluations`.
_STEP_FILES = ("host_*_of_*.jsonl", "summary.json", "pairs.jsonl", *_TEMPORARY)
_STEP = re.compile(r"step_(\d{6,})")
# Left by killed starts, launchers and operating systems: a folder with only these counts as empty.
_IGNORED = (
  ".lock", ".writable*", ".shared*", *_TEMPORARY, ".DS_Store", ".gitignore", ".gitkeep",
  ".nfs*", "desktop.ini", "launch_logs", "lost+found", "nohup.out", "simpo-*.log", "Thumbs.db",
)  # fmt: skip
_SHOWN = 6  # names listed in one message


def check_foreign_files(folder: storage.Path, into_existing: bool) -> None:
  """Raises a UserError if a folder without a run contains files that no run has written.

  Args:
    folder: the workdir; its config.json, if any, is a run's.
    into_existing: whether to accept such files, unless they have names that a run writes.
  """
  names = [name for name in storage.names(folder) if not _matches(name, _IGNORED)]
  if not names or _holds_run(folder):
    return
  conflicts = [name for name in names if _matches(name, RUN_FILES)]
  if conflicts or not into_existing:
    foreign = conflicts or names
    listed = f"{', '.join(foreign[:_SHOWN])}{', ...' if len(foreign) > _SHOWN else ''}"
    raise UserError(
      f"--workdir={brief(folder)} holds {listed}, which no run has written; choose a fresh folder"
      + ("" if conflicts else ", or pass --into_existing to add the run's files to it")
    )


def set_aside(folder: storage.Path) -> None:
  """Moves the files of the last attempt to `attempts/`, into a folder with the next number."""
  attempts = folder / "attempts"
  numbers = [int(name) for name in storage.names(attempts) if name.isdecimal()]
  target = attempts / f"{max(numbers, default=0) + 1:04d}"
  if not storage.is_remote(folder):
    target.mkdir(parents=True)
  # run.json last: if this process is killed, the next attempt continues the move.
  for name in sorted(storage.names(folder), key=lambda name: (name == "run.json", name)):
    if name != "attempts" and _matches(name, RUN_FILES):
      storage.move(folder / name, target / name)


def steps_in(folder: storage.Path) -> dict[int, storage.Path]:
  """The folders of the steps in `samples` or `evaluations`, by step."""
  found = {name: _STEP.fullmatch(name) for name in storage.names(folder)}
  return {int(match[1]): folder / name for name, match in found.items() if match}


def remove_step(folder: storage.Path) -> None:
  """Removes the files of a run from the folder of a step, and the folder if it is then empty."""
  for name in storage.names(folder):
    if _matches(name, _STEP_FILES):
      (folder / name).unlink()
  if not storage.is_remote(folder) and not storage.names(folder):
    folder.rmdir()


def _holds_run(folder: storage.Path) -> bool:
  return (
    any((folder / name).exists() for name in ("run.json", "config.json"))
    or any(map(str.isdecimal, storage.names(folder / "attempts")))
    or any(map(_STEP.match, storage.names(folder / "checkpoints")))
  )


def _matches(name: str, patterns: Sequence[str]) -> bool:
  return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
