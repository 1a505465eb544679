"""Where a run begins: at step 0, at its own last good checkpoint, or at another run's."""

import contextlib
import datetime
import json
import secrets
from typing import Any, NamedTuple

import jax

from simpo_jax import distributed, storage
from simpo_jax import workdir as files
from simpo_jax.checkpoint import ABOUT, Position, clean, damage, positions, read_about
from simpo_jax.checkpoint_orbax import check_fits, restore, restore_weights
from simpo_jax.data.skips import SkipReport
from simpo_jax.data.stream import Mixture
from simpo_jax.errors import UserError, one_line
from simpo_jax.ledger import Mode
from simpo_jax.program import ProgramConfig, abstract_state, init_state, state_sharding
from simpo_jax.resolve import Run
from simpo_jax.schedule import launches_after
from simpo_jax.train import TrainState
from simpo_jax.weights import OpenModel, load_params

_INIT_FROM = "--config.checkpoint.init_from"
_FIRST = "tokenizer"  # if it changed, so have the pairs and prompts that it made


class Start(NamedTuple):
  """What a run begins with.

  Attributes:
    folder: of the checkpoint; None: the model's own weights.
    position: how far the run is.
    about: what the checkpoint says of itself.
    weights_only: neither the optimizer's state nor the position is taken from it.
    own: it is of this very run, which goes on.
    notes: what the user should know.
  """

  folder: storage.Path | None = None
  position: Position = Position()
  about: dict[str, Any] = {}
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
  token = secrets.token_hex(8)
  probe = folder / ".shared"
  if jax.process_index() == 0:
    storage.write(probe, token)
  token = distributed.gather("shared workdir", token)[0]
  try:
    seen = probe.read_text() == token
  except storage.failures():
    seen = False
  everyone = distributed.gather("sight of the workdir", json.dumps(seen))
  if jax.process_index() == 0:
    probe.unlink()
  return all(json.loads(answer) for answer in everyone)


def run_date(workdir: str | None, config) -> str:
  """When the run that is to go on began, else now: local time, ISO 8601.

  Chat templates that print the date are shown it, so that a run which goes on another
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
          return read_about(path)["date"]
  return _now()


def _now() -> str:
  return datetime.datetime.now().isoformat(timespec="seconds")


def find_start(workdir: storage.Path, config, identity: dict[str, str], run: Run) -> Start:
  """The last good checkpoint of the workdir, else what `checkpoint.init_from` names.

  All processes must ask. Of an own checkpoint, the workdir's later rows and samples are
  removed: they will be written again; and `run.skips` goes on from its counts.

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
    about = read_about(folder)
    _check_identity(folder, about["identity"], identity)
    check_fits(folder, abstract_state(program), weights_only=False)
    if jax.process_index() == 0:
      _cut_back(workdir, found, about, config)
    distributed.gather("cut back", "")
    if isinstance(run.train_pairs, Mixture) and "skips" in about:
      run.skips["train"] = SkipReport(**about["skips"]["train"])
    return Start(folder, found, about, own=True, notes=tuple(notes))
  if not config.checkpoint.init_from:
    return Start()
  start = _other(config)
  check_fits(start.folder, abstract_state(program), start.weights_only)
  return start


def changes_since(start: Start, build: dict[str, str]) -> list[str]:
  """How the program differs from the one that wrote the run's own checkpoint, in words.

  Args:
    build: of the program now; see `fingerprint.build_fields`.
  """
  before = start.about.get("build", {}) if start.own else {}
  differs = [name for name in before if before[name] != build.get(name)]
  return [f"{name}: {before[name] or 'none'}, now {build.get(name) or 'none'}" for name in differs]


def load_state(start: Start, program: ProgramConfig, model: OpenModel, seed: int) -> TrainState:
  """The train state to begin with, on the devices; nothing compiles."""
  if start.folder is not None and not start.weights_only:
    return restore(start.folder, abstract_state(program))
  if start.folder is not None:
    params = restore_weights(start.folder, abstract_state(program))
  else:
    shardings = state_sharding(program).params
    params = load_params(model, shardings, program.param_dtype, seed, program.step.lora)
  return init_state(program, params)


def _other(config) -> Start:
  """Start from another run's checkpoint."""
  field, name = _INIT_FROM, config.checkpoint.init_from
  folder, notes = storage.open_path(name, field, ("gs",)), []
  if not folder.is_dir():
    raise UserError(f"{field}={name} is no folder; name a workdir or a checkpoint in it")
  if (folder / ABOUT).exists():
    if problem := _everyones(damage(folder, jax.process_index(), jax.process_count())):
      raise UserError(f"{field}={name} is damaged ({problem}); name another checkpoint")
  else:
    mine = folder if positions(folder) else checkpoints_folder(folder)
    found, _, notes = _newest_good(mine)
    if found is None:
      why = f" that is whole ({'; '.join(notes)})" if notes else ""
      raise UserError(f"{field}={name} holds no checkpoint{why}; name a workdir or a checkpoint")
    folder = mine / found.name
  about = read_about(folder)
  if config.checkpoint.init_what == "weights":
    return Start(folder, Position(), about, weights_only=True, notes=tuple(notes))
  step = about["position"]["step"]
  if step >= config.train.steps:
    raise UserError(
      f"{field}={name} is at step {step} of --config.train.steps={config.train.steps}: nothing is "
      "left to train; raise train.steps, or --config.checkpoint.init_what=weights"
    )
  # What follows that step was the other run's to do.
  return Start(folder, Position(step, len(_ALL)), about, notes=tuple(notes))


_ALL = ("generate", "evaluate")  # the most launches that can follow a step


def _newest_good(folder: storage.Path) -> tuple[Position | None, list[Position], list[str]]:
  """The newest checkpoint that is whole, the damaged ones that are newer, and words on them."""
  listed = distributed.gather("checkpoints", json.dumps(positions(folder)))[0]
  damaged, notes = [], []
  for position in reversed([Position(*p) for p in json.loads(listed)]):
    path = folder / position.name
    problem = _everyones(damage(path, jax.process_index(), jax.process_count()))
    if problem is None:
      return position, damaged, notes
    damaged.append(position)
    notes.append(f"checkpoint {position.name} is damaged: {problem}")
  return None, damaged, notes


def _everyones(problem: str | None) -> str | None:
  """The first problem that any process has."""
  answers = distributed.gather("checkpoint's files", json.dumps(problem))
  return next((p for p in map(json.loads, answers) if p), None)


def _check_identity(folder: storage.Path, before: dict[str, str], now: dict[str, str]) -> None:
  changed = [name for name in now if before.get(name) != now[name]]
  if _FIRST in changed:
    changed = [_FIRST]
  if changed:
    raise UserError(
      f"since the checkpoint {folder} these have changed: {', '.join(changed)}; put back what the "
      "run began with, or start over in a new --workdir (its weights: "
      f"--config.checkpoint.init_from={folder})"
    )


def _cut_back(workdir: storage.Path, position: Position, about: dict[str, Any], config) -> None:
  """Removes rows and samples that are later than the checkpoint."""
  try:
    files.cut_metrics(workdir, about["metrics_bytes"])
    for mode, name in ((Mode.GENERATE, "samples"), (Mode.EVALUATE, "evaluations")):
      for path in (workdir / name).glob("step_*"):
        step = int(path.name.removeprefix("step_"))
        done = launches_after(step, config)[: position.done] if step == position.step else []
        if step >= position.step and mode not in done:
          storage.remove_tree(path)
    (workdir / "failure.json").unlink(missing_ok=True)
  except storage.failures() as e:
    raise UserError(f"--workdir={workdir} cannot be written ({one_line(e)})") from e
