"""Where a run begins: at step 0, at its own last good checkpoint, or at another run's."""

import contextlib
import datetime
import json
from typing import Any, NamedTuple

import jax

from simpo_jax import distributed, storage
from simpo_jax.checkpoint.layout import METADATA, Position, clean, positions, read_metadata, verify
from simpo_jax.checkpoint.manager import check_fits, restore, restore_weights
from simpo_jax.checkpoint.split_change import check_split
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
_FIRST = "tokenizer"  # if it changed, so have the pairs and prompts that it made


class ResumePoint(NamedTuple):
  """What a run begins with.

  Attributes:
    folder: of the checkpoint; None: the model's own weights.
    position: where the run starts.
    metadata: the checkpoint's metadata.
    weights_only: whether only weights are restored, not the optimizer state or the position.
    own: whether the checkpoint is this run's own, that is, the run is being resumed.
    notes: messages for the user.
  """

  folder: storage.Path | None = None
  position: Position = Position()
  metadata: dict[str, Any] = {}
  weights_only: bool = False
  own: bool = False
  notes: tuple[str, ...] = ()


def checkpoints_folder(workdir: storage.Path) -> storage.Path:
  """Where a run's checkpoints lie."""
  return workdir / "checkpoints"


def is_shared(folder: storage.Path) -> bool:
  """Whether all processes see the same folder; all must ask."""
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
  everyone = distributed.gather("sight of the workdir", json.dumps(seen))
  if jax.process_index() == 0:
    probe.unlink()
  return all(json.loads(answer) for answer in everyone)


def run_date(workdir: str | None, config: Settings) -> str:
  """Start date of the run to resume, else now: local time, ISO 8601.

  Chat templates that print the date are given this one, so that a run resumed on another
  day trains on the same text.
  """
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
          return read_metadata(path)["date"]
  return _now()


def _now() -> str:
  return datetime.datetime.now().isoformat(timespec="seconds")


def find_resume_point(
  workdir: storage.Path, config: Settings, identity: dict[str, str], run: ResolvedRun
) -> ResumePoint:
  """The last good checkpoint of the workdir, else what `checkpoint.init_from` names.

  All processes must call this. When the run resumes from its own checkpoint, metrics rows and
  samples newer than the checkpoint are removed from the workdir: they will be written again.

  Args:
    workdir: as `make_workdir` leaves it: its checkpoints, if any, are of this run.
    identity: of data, model and tokenizer; see `fingerprint.identity_fields`.

  Raises:
    UserError: nothing usable is there, or this run is not the one that was saved.
  """
  mine, program = checkpoints_folder(workdir), run.program
  found, damaged, notes = _newest_good(mine)
  if found or damaged:
    if jax.process_index() == 0:
      clean(mine, damaged)
    if found is None:
      raise UserError(
        f"--workdir={workdir} holds no checkpoint that is whole ({'; '.join(notes)}); start over "
        "with --config.checkpoint.resume=False"
      )
    folder = mine / found.name
    metadata = read_metadata(folder)
    remedy = "finish it with that version, or start over in a new --workdir (its weights: "
    remedy += f"{_INIT_FROM}={folder})"
    check_split(folder, metadata["identity"], run.model, run.tokenizer, remedy)
    check_identity(folder, metadata["identity"], identity)
    check_fits(folder, abstract_state(program), weights_only=False)
    if jax.process_index() == 0:
      _cut_back(workdir, found, metadata, config)
    distributed.gather("cut back", "")
    return ResumePoint(folder, found, metadata, own=True, notes=tuple(notes))
  if not config.checkpoint.init_from:
    return ResumePoint()
  start = resolve_init_from(config)
  if start.folder is not None:
    check_fits(start.folder, abstract_state(program), start.weights_only)
  return start


def progress_at(start: ResumePoint, run: ResolvedRun) -> Progress:
  """The progress of a run that starts from this resume point."""
  skips, bad_steps = dict(run.skips), start.metadata.get("bad_steps", ())
  # Skipped rows of data read on demand were counted during training: restore those counts.
  if start.own and isinstance(run.train_pairs, Mixture) and "skips" in start.metadata:
    skips["train"] = SkipReport(**start.metadata["skips"]["train"])
  return Progress(start.position, skips, () if start.weights_only else tuple(bad_steps))


def changes_since(start: ResumePoint, build: dict[str, str]) -> list[str]:
  """How the program differs from the one that wrote the run's own checkpoint, in words.

  Args:
    build: of the program now; see `fingerprint.build_fields`.
  """
  before = start.metadata.get("build", {}) if start.own else {}
  differs = [name for name in before if before[name] != build.get(name)]
  return [f"{name}: {before[name] or 'none'}, now {build.get(name) or 'none'}" for name in differs]


def load_state(
  start: ResumePoint, program: ProgramConfig, model: OpenModel, seed: int
) -> TrainState:
  """The train state to begin with, on the devices; nothing compiles."""
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
    raise UserError(f"{field}={name} is no folder; name a workdir or a checkpoint in it")
  if (folder / METADATA).exists():
    if problem := _first_problem(verify(folder, jax.process_index(), jax.process_count())):
      raise UserError(f"{field}={name} is damaged ({problem}); name another checkpoint")
  else:
    mine = folder if positions(folder) else checkpoints_folder(folder)
    found, _, notes = _newest_good(mine)
    if found is None:
      why = f" that is whole ({'; '.join(notes)})" if notes else ""
      raise UserError(f"{field}={name} holds no checkpoint{why}; name a workdir or a checkpoint")
    folder = mine / found.name
  metadata = read_metadata(folder)
  if config.checkpoint.init_what == "weights":
    return ResumePoint(folder, Position(), metadata, weights_only=True, notes=tuple(notes))
  step = metadata["position"]["step"]
  if step >= config.train.steps:
    raise UserError(
      f"{field}={name} is at step {step} of --config.train.steps={config.train.steps}: nothing is "
      "left to train; raise train.steps, or --config.checkpoint.init_what=weights"
    )
  # The launches that follow that step belonged to the other run: all count as done.
  return ResumePoint(folder, Position(step, MAX_LAUNCHES), metadata, notes=tuple(notes))


def _newest_good(folder: storage.Path) -> tuple[Position | None, list[Position], list[str]]:
  """The newest checkpoint that is whole, the damaged ones that are newer, and words on them."""
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
  """The first problem reported by any process, else None; all processes must call this."""
  answers = distributed.gather("checkpoint's files", json.dumps(problem))
  return next((p for p in map(json.loads, answers) if p), None)


def check_identity(folder: storage.Path, before: dict[str, str], now: dict[str, str]) -> None:
  """Raises a UserError that names what has changed since the checkpoint was saved."""
  # Fields that an older checkpoint did not record count as unchanged.
  changed = [name for name in now if before.get(name, now[name]) != now[name]]
  if _FIRST in changed:
    changed = [_FIRST]
  if changed:
    raise UserError(
      f"since the checkpoint {folder} these have changed: {', '.join(changed)}; put back what the "
      "run began with, or start over in a new --workdir (its weights: "
      f"--config.checkpoint.init_from={folder})"
    )


def _cut_back(
  workdir: storage.Path, position: Position, metadata: dict[str, Any], config: Settings
) -> None:
  """Removes rows and samples that are later than the checkpoint."""
  try:
    files.cut_metrics(workdir, metadata["metrics_bytes"])
    for mode, name in ((Mode.GENERATE, "samples"), (Mode.EVALUATE, "evaluations")):
      for step, path in steps_in(workdir / name).items():
        done = launches_after(step, config)[: position.done] if step == position.step else []
        if step >= position.step and mode not in done:
          remove_step(path)
    (workdir / "failure.json").unlink(missing_ok=True)
  except storage.failures() as e:
    raise UserError(f"--workdir={workdir} cannot be written ({one_line(e)})") from e
