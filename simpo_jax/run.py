"""The run, top to bottom: resolve, compile once, load, then launch by the schedule."""

import json
from collections.abc import Callable

import jax

from simpo_jax import distributed, storage
from simpo_jax import workdir as files
from simpo_jax.adapter import export_adapter
from simpo_jax.data.feed import feeding
from simpo_jax.data.pairs import PairTokens
from simpo_jax.data.steps import Window, step_source, window_source
from simpo_jax.data.stream import open_stream
from simpo_jax.display import Display
from simpo_jax.errors import Stopped
from simpo_jax.export.runs import check_at_end, export_at_end
from simpo_jax.fingerprint import build_fields, data_fields, identity_fields, settings_fields
from simpo_jax.launch import Launcher, StopSignal
from simpo_jax.ledger import Mode, digest
from simpo_jax.model import count_params
from simpo_jax.modes import Loop, evaluate, generate, train
from simpo_jax.profiling import Profiler
from simpo_jax.program import compile_program, compiler_options, lower_program, own_rows
from simpo_jax.record import RunRecord
from simpo_jax.report.live import reporting
from simpo_jax.resolve import Run, resolve
from simpo_jax.resume import changes_since, find_start, is_shared, load_state, run_date
from simpo_jax.saver import Saver
from simpo_jax.schedule import launches_after
from simpo_jax.tracking.tracking import Tracking
from simpo_jax.train import TrainState
from simpo_jax.watchdog import Watchdog


def run(config, workdir: str | None = None) -> tuple[TrainState, storage.Path]:
  """Runs the whole schedule of `config`.

  Args:
    config: a `config.default_config()` with its changes.
    workdir: the folder to fill; None for a fresh dated one under runs/.

  Returns:
    The final state and the workdir.

  Raises:
    Stopped: SIGTERM or ^C on any host has ended the run early, after the launch in
      progress; it is saved, and run.json says so.
    UserError: anything the user can fix, the hosts disagreeing, or a non-finite step.
  """
  distributed.agree("settings", settings_fields(config))
  resolved = resolve(config, date=distributed.gather("date", run_date(workdir, config))[0])
  data = data_fields(resolved)
  distributed.agree("data", data)
  workdir = workdir or distributed.gather("workdir", files.fresh_name(config.name))[0]
  folder = files.make_workdir(workdir, json.loads(config.to_json()), jax.process_index())
  try:
    with reporting(folder, config.report, jax.process_index() == 0):
      return _in_folder(config, resolved, data, folder)
  finally:
    files.unlock(folder)


def _in_folder(
  config, resolved: Run, data, folder: storage.Path
) -> tuple[TrainState, storage.Path]:
  program, main_process = resolved.program, jax.process_index() == 0
  identity, shared = identity_fields(resolved, data), is_shared(folder)
  check_at_end(config, folder, shared)
  start = find_start(folder, config, identity, resolved)
  record = RunRecord(folder, resolved, config, main_process, start)
  display = Display(config.train.steps, main_process)
  display.banner(resolved, count_params(resolved.model.config), folder)
  display.beginning(start, shared)

  with (
    display.running(),
    record.failures(),
    Tracking(config, folder, display.say, main_process) as track,
  ):
    record.tracking(track)
    # --- compile, once -----------------------------------------------------------------
    display.doing("compiling")
    lowered = lower_program(program)
    distributed.agree(
      "program",
      {
        "program text": lowered.fingerprint,
        "compile options": str(compiler_options(program.mesh)),
      },
    )
    compiled = compile_program(program, lowered)
    changes = changes_since(start, build_fields(compiled, program.mesh))
    display.compiled(compiled, changes)
    record.compiled(compiled, changes)

    # --- weights and inputs onto the devices ---------------------------------------------
    display.doing("loading weights")
    state = load_state(start, program, resolved.model, config.seed)
    # The first launch connects the hosts, and waits only so long for one that still compiles.
    distributed.gather("readiness", "")
    launch = Launcher(
      program,
      compiled,
      digest(config.to_json(), compiled.fingerprint, list(data.values())),
      resolved.packed,
      Watchdog(config.watchdog, folder),
      list(start.about["launches"]) if start.own else [],
    )

    # --- the loop ------------------------------------------------------------------------
    own, windows = own_rows(program), windows_of(resolved, config)
    with (
      StopSignal() as stop,
      Profiler(config.profile.steps, folder) as profiler,
      feeding(windows, config.data.lookahead, program.batch, own) as batch_of,
      Saver(config, folder, resolved, launch, start, identity, shared) as saver,
    ):
      record.launching(launch, saver)
      loop = Loop(resolved, config, launch, folder, display, stop, batch_of, own, saver, track)
      for step in range(start.position.step, config.train.steps + 1):
        if step > start.position.step:
          profiler.before(step)
          display.doing("training")
          state = train(loop, step, state)
          if launch.stopped:
            break
          saver.trained(step, state)
        for number, mode in enumerate(launches_after(step, config), start=1):
          if number <= saver.position.done:
            continue
          if mode == Mode.GENERATE:
            display.doing(f"generating {len(resolved.requests)} requests")
            state = generate(loop, step, state)
          else:
            display.doing("evaluating")
            state = evaluate(loop, step, state)
          if launch.stopped:
            break
          saver.launched(number)
        profiler.after(step)
        record.save("running")
        if launch.stopped:
          break
      display.doing("saving")
      if launch.stopped:
        display.say(f"stop requested: ending after step {saver.position.step}")
        saver.save(state)
      saver.wait()
    if program.step.lora and main_process:
      export_adapter(
        folder / "adapter",
        state.weights["lora"],
        resolved.model.config,
        program.step.lora,
        resolved.model.name if resolved.model.read else None,
      )
    if config.export.at_end and not launch.stopped:
      display.doing("exporting")
      display.say(export_at_end(config, resolved, folder, saver))
    track.end("stopped" if launch.stopped else "done")
  record.finished("stopped" if launch.stopped else "done")
  display.closing(record.data, folder)
  if launch.stopped:
    raise Stopped(
      f"stopped after step {saver.position.step} of {config.train.steps}; start the same command "
      f"again with --workdir={folder} to go on"
    )
  return state, folder


def pairs_by_step(run: Run, config) -> Callable[[int], list[PairTokens]]:
  """The function from a training step to its pairs; see `step_source`."""
  source = step_source(windows_of(run, config), config.data.lookahead)
  return lambda step: source(step)[0]


def windows_of(run: Run, config) -> Callable[[int], Window]:
  """The function from a window of steps to their pairs; see `window_source`."""
  shape, data = run.program.batch, config.data
  read = open_stream(run.train_pairs, run.tokenizer, data, shape.pairs, config.seed)
  return window_source(
    read, shape.pairs, shape.row_length, shape.slots, data.lookahead, config.seed
  )
