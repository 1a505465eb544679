"""What in a workdir is a run's: by the list of names here, and nothing else is ever touched."""

import fnmatch
import re
from collections.abc import Sequence

from simpo_jax import storage
from simpo_jax.errors import UserError
from simpo_jax.storage.paths import brief

# What a run and its trackers write at the top of a workdir, and into the folder of a step under
# `samples` or `evaluations`. Nothing by another name is ever moved, cut back or removed.
WRITTEN = (
  "config.json", "run.json", "metrics.jsonl", "report.html", "failure.json",
  "watchdog_host_*.txt", "samples", "evaluations", "checkpoints", "tensorboard", "tracking",
  "wandb", "profile", "adapter", "export", "attempts",
)  # fmt: skip
# What is written under another name first; the last two are earlier versions'.
_TEMPORARY = (".*.tmp", "*.json.tmp", "*.jsonl.tmp")
_OF_STEP = ("host_*_of_*.jsonl", "summary.json", "pairs.jsonl", *_TEMPORARY)
_STEP = re.compile(r"step_(\d{6,})")
# Of a start that was killed, of launchers and of systems: people call a folder empty that holds
# these.
_NOTHING = (
  ".lock", ".writable*", ".shared*", *_TEMPORARY, ".DS_Store", ".gitignore", ".gitkeep",
  ".nfs*", "desktop.ini", "launch_logs", "lost+found", "nohup.out", "simpo-*.log", "Thumbs.db",
)  # fmt: skip
_SHOWN = 6  # names listed in one message


def check_others(folder: storage.Path, into_existing: bool) -> None:
  """Raises a UserError if a folder holds other things, and no run that they may lie beside.

  What a run would write over, or take for its own later, is refused whatever the user says.

  Args:
    folder: a workdir to be; a config.json in it is a run's.
    into_existing: whether the user has said that it may.
  """
  there = [name for name in storage.names(folder) if not _matches(name, _NOTHING)]
  if not there or _holds_run(folder):
    return
  taken = [name for name in there if _matches(name, WRITTEN)]
  if taken or not into_existing:
    found = taken or there
    listed = f"{', '.join(found[:_SHOWN])}{', ...' if len(found) > _SHOWN else ''}"
    raise UserError(
      f"--workdir={brief(folder)} holds {listed}, which no run has written; choose a fresh folder"
      + ("" if taken else ", or say --into_existing to have the run's files beside it")
    )


def set_aside(folder: storage.Path) -> None:
  """Moves what the last attempt has written into `attempts/`, under the next number."""
  attempts = folder / "attempts"
  numbers = [int(name) for name in storage.names(attempts) if name.isdecimal()]
  target = attempts / f"{max(numbers, default=0) + 1:04d}"
  if not storage.is_remote(folder):
    target.mkdir(parents=True)
  # run.json last: should this be killed, the next attempt goes on with it.
  for name in sorted(storage.names(folder), key=lambda name: (name == "run.json", name)):
    if name != "attempts" and _matches(name, WRITTEN):
      storage.move(folder / name, target / name)


def steps_in(folder: storage.Path) -> dict[int, storage.Path]:
  """The folders of steps under `samples` or `evaluations`, by step."""
  found = {name: _STEP.fullmatch(name) for name in storage.names(folder)}
  return {int(match[1]): folder / name for name, match in found.items() if match}


def remove_step(folder: storage.Path) -> None:
  """Removes what a run has written into the folder of a step, and the folder if that was all."""
  for name in storage.names(folder):
    if _matches(name, _OF_STEP):
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
