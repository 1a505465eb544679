"""A run from start to end: resolve the config, compile once, load, then launch the schedule."""

import json
import pathlib
from collections.abc import Callable

import jax

from simpo_jax import distributed, storage
from simpo_jax.checkpoint.resume import (
  ResumePoint,
  changes_since,
  find_resume_point,
  is_shared,
  load_state,
  progress_at,
  run_origin,
)
from simpo_jax.checkpoint.saver import Saver, try_saving
from simpo_jax.config import Config, as_json
from simpo_jax.config_check import validate
from simpo_jax.data.mixture import open_stream
from simpo_jax.data.prefetch import prefetch_batches
from simpo_jax.data.steps import Window, step_source, window_source
from simpo_jax.data.types import PairTokens
from simpo_jax.errors import Stopped
from simpo_jax.export.adapter import export_adapter
from simpo_jax.export.runs import check_export_at_end, export_at_end
from simpo_jax.models.llama import count_params
from simpo_jax.models.weights import OpenModel
from simpo_jax.program.build import Compiled, compile_program, compiler_options, lower_program
from simpo_jax.program.inputs import local_rows
from simpo_jax.program.ledger import Mode, digest
from simpo_jax.report.live import reporting
from simpo_jax.runtime.console import Display
from simpo_jax.runtime.context import RunContext
from simpo_jax.runtime.fingerprint import (
  build_fields,
  data_fields,
  identity_fields,
  settings_fields,
)
from simpo_jax.runtime.launch_schedule import launches_after
from simpo_jax.runtime.launcher import Launcher, StopRequested
from simpo_jax.runtime.modes import evaluate, generate, train
from simpo_jax.runtime.profiling import Profiler
from simpo_jax.runtime.progress import Progress
from simpo_jax.runtime.record import RunRecord
from simpo_jax.runtime.resolve import ResolvedRun, resolve
from simpo_jax.runtime.signals import StopSignal
from simpo_jax.runtime.watchdog import Watchdog
from simpo_jax.settings import Settings
from simpo_jax.trackers.tracker import Tracking
from simpo_jax.train.step import TrainState
from simpo_jax.workdir import files


def run(
  config: Config | Settings,
  workdir: str | None = None,
  into_existing: bool = False,
) -> tuple[TrainState, storage.Path]:
  """Runs the whole schedule of `config`, or resumes the unfinished run in `workdir`.

  Args:
    config: a `config.default_config()` with changed fields.
    workdir: the output folder; None: a new dated one under runs/.
    into_existing: accept a workdir that has other files and no run; they are left alone.

  Returns:
    The final state and the workdir.

  Raises:
    Stopped: SIGTERM or ^C on any host ended the run early, after the launch in progress; a
      checkpoint is saved, and run.json records the stop.
    UserError: anything the user can fix, a disagreement between hosts, or a non-finite step.
  """
  config = validate(config)
  distributed.agree("settings", settings_fields(config))
  origin = distributed.gather("origin", json.dumps(run_origin(workdir, config)))[0]
  resolved = resolve(config, None, *json.loads(origin))
  data = data_fields(resolved)
  distributed.agree("data", data)
  workdir = workdir or distributed.gather("workdir", files.fresh_name(config.name))[0]
  folder = files.make_workdir(workdir, as_json(config), jax.process_index(), into_existing)
  try:
    with reporting(folder, config.report, jax.process_index() == 0):
      return _in_folder(config, resolved, data, folder)
  finally:
    files.unlock(folder)


def _in_folder(
  config: Settings, resolved: ResolvedRun, data: dict[str, str], folder: storage.Path
) -> tuple[TrainState, storage.Path]:
  program, main_process = resolved.program, jax.process_index() == 0
  identity, shared = identity_fields(resolved, data), is_shared(folder)
  check_export_at_end(config, folder, shared, resolved.model)
  start = find_resume_point(folder, config, identity, resolved)
  progress = progress_at(start, resolved)
  record = RunRecord(folder, resolved, config, main_process, start, progress)
  display = Display(config.train.steps, main_process)
  display.banner(resolved, progress.skips, count_params(resolved.model.config), folder)
  display.starting_from(start, shared)

  with (
    display.running(),
    record.recording_failures(),
    Tracking(config, folder, display.say, main_process) as track,
  ):
    record.set_tracking(track)
    if shared:
      display.doing("trying to save")
      try_saving(folder, program.mesh)
    compiled = _compile(resolved, start, display, record)
    display.doing("loading weights")
    state = load_state(start, program, resolved.model, config.seed)
    # The first launch connects the hosts, with a timeout that a host still compiling would exceed.
    distributed.gather("readiness", "")
    launch = Launcher(
      program,
      compiled,
      digest(json.dumps(as_json(config)), compiled.fingerprint, list(data.values())),
      resolved.packed,
      Watchdog(config.watchdog, folder),
      list(start.metadata["launches"]) if start.is_resume else [],
    )
    windows = windows_of(resolved, config)
    lookahead, rows = config.data.lookahead, local_rows(program)
    with (
      StopSignal() as stop,
      Profiler(config.profile.steps, folder) as profiler,
      prefetch_batches(windows, lookahead, program.batch, rows) as batch_of,
      Saver(config, folder, resolved, launch, start, identity, shared) as saver,
    ):
      record.set_launcher(launch, saver)
      context = RunContext(
        resolved, config, launch, folder, display, stop, batch_of, rows, saver, track
      )
      progress, state, stopped = _loop(context, progress, state, profiler, record)
    _export(context, state, stopped)
    track.end("stopped" if stopped else "done")
  record.finished("stopped" if stopped else "done")
  display.closing(record.data, folder)
  if stopped:
    raise Stopped(
      f"stopped after step {progress.step} of {config.train.steps}; start the same command "
      f"again with --workdir={folder} to resume"
    )
  return state, folder


def _compile(
  resolved: ResolvedRun, start: ResumePoint, display: Display, record: RunRecord
) -> Compiled:
  """Lowers the program, compares its text between hosts, and compiles it: once per run."""
  program = resolved.program
  display.doing("compiling")
  lowered, options = lower_program(program), str(compiler_options(program.mesh))
  texts = {"program text": lowered.fingerprint, "compile options": options}
  distributed.agree("program", texts)
  compiled = compile_program(program, lowered)
  changes = changes_since(start, build_fields(compiled, program.mesh))
  display.compiled(compiled, changes)
  record.compiled(compiled, changes)
  return compiled


def _loop(
  context: RunContext,
  progress: Progress,
  state: TrainState,
  profiler: Profiler,
  record: RunRecord,
) -> tuple[Progress, TrainState, bool]:
  """Runs all launches from `progress` on; returns (progress, state, stopped on request)."""
  config, display, saver, stopped = context.config, context.display, context.saver, False
  try:
    for step in range(progress.step, config.train.steps + 1):
      if step > progress.step:
        profiler.before_step(step)
        display.doing("training")
        progress, state = train(context, progress, state)
        record.progress = progress
        saver.after_step(progress, state)
      for number, mode in enumerate(launches_after(step, config), start=1):
        if number <= progress.position.done:
          continue
        if mode == Mode.GENERATE:
          display.doing(f"generating {len(context.run.requests)} requests")
          state = generate(context, step, state)
        else:
          display.doing("evaluating")
          state = evaluate(context, step, state)
        progress = progress.after_launch(number)
      profiler.after_step(step)
      record.save("running")
  except StopRequested as stop:
    state, stopped = stop.state, True
    display.say(f"stop requested: ending after step {progress.step}")
    saver.save(progress, state)
  display.doing("saving")
  saver.wait()
  return progress, state, stopped


def _export(context: RunContext, state: TrainState, stopped: bool) -> None:
  """Exports the adapter of a LoRA run, and the model if export.at_end is set."""
  run, config, folder = context.run, context.config, context.folder
  lora = run.program.step.lora
  if lora and context.writes:
    export_adapter(
      folder / "adapter",
      state.weights["lora"],
      run.model.config,
      lora,
      _base_of(run.model),
    )
  if config.export.at_end and not stopped:
    checkpoint = context.saver.last
    assert checkpoint and isinstance(folder, pathlib.Path), "checked by `check_export_at_end`"
    context.display.doing("exporting")
    context.display.say(export_at_end(config, run, folder, checkpoint))


def _base_of(model: OpenModel) -> str | None:
  """The source of the weights without adapters; None if they are random."""
  if model.adapter is not None:
    return model.adapter.base
  return model.name if model.read else None


def pairs_by_step(run: ResolvedRun, config: Settings) -> Callable[[int], list[PairTokens]]:
  """Returns a function from a training step (from 1) to its pairs; see `step_source`."""
  source = step_source(windows_of(run, config), config.data.lookahead)
  return lambda step: source(step)[0]


def windows_of(run: ResolvedRun, config: Settings) -> Callable[[int], Window]:
  """Returns a function from a window's number (from 0) to its steps; see `window_source`."""
  shape, data = run.program.batch, config.data
  read = open_stream(run.train_pairs, run.tokenizer, data, shape.pairs, config.seed)
  return window_source(
    read, shape.pairs, shape.row_length, shape.slots, data.lookahead, config.seed
  )
