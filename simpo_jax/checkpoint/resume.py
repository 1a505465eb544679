"""Finds where a run starts: at step 0, at its last good checkpoint, or at another run's."""

import contextlib
import datetime
import json
from typing import Any, NamedTuple

import jax

from simpo_jax import distributed, storage
from simpo_jax.checkpoint.layout import METADATA, Position, clean, positions, read_metadata, verify
from simpo_jax.checkpoint.manager import check_fits, restore, restore_weights
from simpo_jax.checkpoint.split_change import check_split
from simpo_jax.checkpoint.tie_change import as_trained
from simpo_jax.data.load import BY_PROMPT, BY_ROW
from simpo_jax.data.mixture import Mixture
from simpo_jax.data.skip_report import SkipReport
from simpo_jax.errors import UserError, one_line
from simpo_jax.models.weights import OpenModel, load_params
from simpo_jax.program.config import ProgramConfig
from simpo_jax.program.ledger import Mode
from simpo_jax.program.state import abstract_state, init_state, state_sharding
from simpo_jax.runtime.launch_schedule import MAX_LAUNCHES, launches_after
from simpo_jax.runtime.progress import Progress
from simpo_jax.runtime.resolve import ResolvedRun
from simpo_jax.settings import Settings
from simpo_jax.storage import temporary
from simpo_jax.train.step import TrainState
from simpo_jax.workdir import files
from simpo_jax.workdir.contents import remove_step, steps_in

_INIT_FROM = "--config.checkpoint.init_from"
_TOKENIZER = "tokenizer"  # a field of the identity; if it changed, so have pairs and prompts


class ResumePoint(NamedTuple):
  """What a run starts from.

  Attributes:
    folder: of the checkpoint; None: start from the base model's weights.
    position: where the run starts.
    metadata: of the checkpoint.
    weights_only: whether only weights are restored, not the optimizer state or the position.
    is_resume: whether the checkpoint is one of this run.
    notes: messages for the user.
  """

  folder: storage.Path | None = None
  position: Position = Position()
  metadata: dict[str, Any] = {}
  weights_only: bool = False
  is_resume: bool = False
  notes: tuple[str, ...] = ()


def checkpoints_folder(workdir: storage.Path) -> storage.Path:
  """The folder of a run's checkpoints."""
  return workdir / "checkpoints"


def is_shared(folder: storage.Path) -> bool:
  """Whether all processes see the same folder; all must call this."""
  if jax.process_count() == 1:
    return True
  name = temporary.unique_name("shared")
  if jax.process_index() == 0:
    storage.write(folder / name, name)
  name = distributed.gather("shared workdir", name)[0]
  probe = folder / name
  try:
    seen = probe.read_text() == name
  except storage.failures():
    seen = False
  everyone = distributed.gather("access to the workdir", json.dumps(seen))
  if jax.process_index() == 0:
    probe.unlink()
  return all(json.loads(answer) for answer in everyone)


class Origin(NamedTuple):
  """What a run that continues another one takes from it.

  Attributes:
    date: when it began: local time, ISO 8601. Chat templates that print the date get this one, so a
      run that is resumed on another day trains on the same text.
    split_by: how its held-out pairs were chosen; see `load_data`.
  """

  date: str
  split_by: str


def run_origin(workdir: str | None, config: Settings) -> Origin:
  """Returns the origin of the run to resume, else that of a run that begins now."""
  folders = []
  if workdir and config.checkpoint.resume:
    folders.append(checkpoints_folder(files.open_workdir(workdir)))
  if config.checkpoint.init_from and config.checkpoint.init_what == "all":
    other = storage.open_path(config.checkpoint.init_from, _INIT_FROM, ("gs",))
    folders += [other, checkpoints_folder(other)]
  for folder in folders:
    with contextlib.suppress(*storage.failures()):
      for path in (folder, *(folder / p.name for p in reversed(positions(folder)))):
        with contextlib.suppress(*storage.failures(), ValueError, KeyError):
          metadata = read_metadata(path)
          # Earlier versions did not record the split, and split by row.
          return Origin(metadata["date"], metadata.get("split_by", BY_ROW))
  return Origin(_now(), BY_PROMPT)


def _now() -> str:
  return datetime.datetime.now().isoformat(timespec="seconds")


def find_resume_point(
  workdir: storage.Path, config: Settings, identity: dict[str, str], run: ResolvedRun
) -> ResumePoint:
  """Finds the last good checkpoint of the workdir, else the one that `checkpoint.init_from` names.

  All processes must call this. If the run resumes, metrics rows and samples later than the
  checkpoint are removed from the workdir, since they will be written again.

  Args:
    workdir: from `make_workdir`, so that its checkpoints, if any, are of this run.
    identity: of data, model and tokenizer; see `fingerprint.identity_fields`.

  Raises:
    UserError: all checkpoints are damaged, or data, model or settings have changed.
  """
  checkpoints, program = checkpoints_folder(workdir), run.program
  found, damaged, notes = _newest_good(checkpoints)
  if found or damaged:
    if jax.process_index() == 0:
      clean(checkpoints, damaged)
    if found is None:
      raise UserError(
        f"--workdir={workdir} holds no intact checkpoint ({'; '.join(notes)}); start over "
        "with --config.checkpoint.resume=False"
      )
    folder = checkpoints / found.name
    metadata = read_metadata(folder)
    remedy = "finish it with that version, or start over in a new --workdir (its weights: "
    remedy += f"{_INIT_FROM}={folder})"
    check_split(folder, metadata["identity"], run.model, run.tokenizer, remedy)
    if as_trained(run.model, metadata["identity"]) != run.model:
      raise UserError(
        f"{folder} is of an earlier version of simpo_jax, which dropped the lm_head.weight of "
        f"{run.model.name} and used its embedding instead; {remedy}"
      )
    check_identity(folder, metadata["identity"], identity)
    check_fits(folder, abstract_state(program), weights_only=False)
    if jax.process_index() == 0:
      _remove_later_output(workdir, found, metadata, config)
    distributed.gather("removal of later output", "")
    return ResumePoint(folder, found, metadata, is_resume=True, notes=tuple(notes))
  if not config.checkpoint.init_from:
    return ResumePoint()
  start = resolve_init_from(config)
  if start.folder is not None:
    check_fits(start.folder, abstract_state(program), start.weights_only)
  return start


def progress_at(start: ResumePoint, run: ResolvedRun) -> Progress:
  """Returns the progress of a run that starts from this resume point."""
  skips, bad_steps = dict(run.skips), start.metadata.get("bad_steps", ())
  # With data read on demand, skips are counted during training: restore those counts.
  if start.is_resume and isinstance(run.train_pairs, Mixture) and "skips" in start.metadata:
    saved = {"notes": {}, **start.metadata["skips"]["train"]}  # older versions count no notes
    skips["train"] = SkipReport(**saved)
  return Progress(start.position, skips, () if start.weights_only else tuple(bad_steps))


def changes_since(start: ResumePoint, build: dict[str, str]) -> list[str]:
  """Describes how the program differs from the one that wrote the checkpoint of this run.

  Args:
    build: of the current program; see `fingerprint.build_fields`.
  """
  before = start.metadata.get("build", {}) if start.is_resume else {}
  differs = [name for name in before if before[name] != build.get(name)]
  return [f"{name}: {before[name] or 'none'}, now {build.get(name) or 'none'}" for name in differs]


def load_state(
  start: ResumePoint, program: ProgramConfig, model: OpenModel, seed: int
) -> TrainState:
  """Loads the initial train state onto the devices; nothing compiles."""
  if start.folder is not None and not start.weights_only:
    return restore(start.folder, abstract_state(program))
  if start.folder is not None:
    params = restore_weights(start.folder, abstract_state(program))
  else:
    shardings = state_sharding(program).params
    params = load_params(model, shardings, program.param_dtype, seed, program.step.lora)
  return init_state(program, params)


def resolve_init_from(config: Settings) -> ResumePoint:
  """Resolves `checkpoint.init_from`: a checkpoint, or the newest good one in a workdir."""
  field, name = _INIT_FROM, config.checkpoint.init_from
  folder, notes = storage.open_path(name, field, ("gs",)), []
  if not folder.is_dir():
    raise UserError(f"{field}={name} is not a folder; name a workdir or a checkpoint in it")
  if (folder / METADATA).exists():
    if problem := _first_problem(verify(folder, jax.process_index(), jax.process_count())):
      raise UserError(f"{field}={name} is damaged ({problem}); name another checkpoint")
  else:
    checkpoints = folder if positions(folder) else checkpoints_folder(folder)
    found, _, notes = _newest_good(checkpoints)
    if found is None:
      what = f"intact checkpoint ({'; '.join(notes)})" if notes else "checkpoint"
      raise UserError(f"{field}={name} holds no {what}; name a workdir or a checkpoint")
    folder = checkpoints / found.name
  metadata = read_metadata(folder)
  if config.checkpoint.init_what == "weights":
    return ResumePoint(folder, Position(), metadata, weights_only=True, notes=tuple(notes))
  step = metadata["position"]["step"]
  if step >= config.train.steps:
    raise UserError(
      f"{field}={name} is at step {step} of --config.train.steps={config.train.steps}: nothing is "
      "left to train; raise train.steps, or --config.checkpoint.init_what=weights"
    )
  # The launches that follow that step belong to the other run: all count as done.
  return ResumePoint(folder, Position(step, MAX_LAUNCHES), metadata, notes=tuple(notes))


def _newest_good(folder: storage.Path) -> tuple[Position | None, list[Position], list[str]]:
  """The newest intact checkpoint, the newer ones, which are damaged, and notes on those."""
  listed = distributed.gather("checkpoints", json.dumps(positions(folder)))[0]
  damaged, notes = [], []
  for position in reversed([Position(*p) for p in json.loads(listed)]):
    path = folder / position.name
    problem = _first_problem(verify(path, jax.process_index(), jax.process_count()))
    if problem is None:
      return position, damaged, notes
    damaged.append(position)
    notes.append(f"checkpoint {position.name} is damaged: {problem}")
  return None, damaged, notes


def _first_problem(problem: str | None) -> str | None:
  """The problem of the first process that has one, else None; all must call this."""
  answers = distributed.gather("checkpoint verification", json.dumps(problem))
  return next((p for p in map(json.loads, answers) if p), None)


def check_identity(folder: storage.Path, before: dict[str, str], now: dict[str, str]) -> None:
  """Raises a UserError that names what has changed since the checkpoint was saved."""
  # Fields that an older checkpoint does not have count as unchanged.
  changed = [name for name in now if before.get(name, now[name]) != now[name]]
  if _TOKENIZER in changed:
    changed = [_TOKENIZER]
  if changed:
    raise UserError(
      f"since the checkpoint {folder} these have changed: {', '.join(changed)}; put back what the "
      "run began with, or start over in a new --workdir (its weights: "
      f"--config.checkpoint.init_from={folder})"
    )


def _remove_later_output(
  workdir: storage.Path, position: Position, metadata: dict[str, Any], config: Settings
) -> None:
  """Removes metrics rows, samples and evaluations that are later than the checkpoint."""
  try:
    files.truncate_metrics(workdir, metadata["metrics_bytes"])
    for mode, name in ((Mode.GENERATE, "samples"), (Mode.EVALUATE, "evaluations")):
      for step, path in steps_in(workdir / name).items():
        done = launches_after(step, config)[: position.done] if step == position.step else []
        if step >= position.step and mode not in done:
          remove_step(path)
    (workdir / "failure.json").unlink(missing_ok=True)
  except storage.failures() as e:
    raise UserError(f"--workdir={workdir} cannot be written ({one_line(e)})") from e
