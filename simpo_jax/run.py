"""The run, top to bottom: resolve, compile once, load, then launch by the schedule."""

import json
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from simpo_jax import distributed, storage
from simpo_jax import workdir as files
from simpo_jax.adapter import export_adapter
from simpo_jax.data.feed import StepBatch, feeding
from simpo_jax.data.packing import pack, pair_length
from simpo_jax.data.pairs import PairTokens
from simpo_jax.data.skips import add_reports
from simpo_jax.data.steps import Window, step_source, window_source
from simpo_jax.data.stream import open_stream
from simpo_jax.display import Display, skips_text
from simpo_jax.errors import Stopped, UserError
from simpo_jax.export.runs import check_at_end, export_at_end
from simpo_jax.fingerprint import build_fields, data_fields, identity_fields, settings_fields
from simpo_jax.generate import FINISH_REASONS
from simpo_jax.launch import Launcher, StopSignal
from simpo_jax.ledger import Mode, digest
from simpo_jax.metrics import (
  all_pairs,
  evaluation_metrics,
  held_out_rows,
  pair_values,
  train_metrics,
)
from simpo_jax.model import count_params
from simpo_jax.nonfinite import leave_out
from simpo_jax.profiling import Profiler
from simpo_jax.program import (
  compile_program,
  compiler_options,
  lower_program,
  own_rows,
)
from simpo_jax.record import RunRecord
from simpo_jax.report.live import reporting
from simpo_jax.requests import sample_rows, summarize
from simpo_jax.resolve import Run, resolve
from simpo_jax.resume import changes_since, find_start, is_shared, load_state, run_date
from simpo_jax.saver import Saver
from simpo_jax.schedule import launches_after
from simpo_jax.tracking.entries import of_generation
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
      loop = _Loop(resolved, config, launch, folder, display, stop, batch_of, own, saver, track)
      for step in range(start.position.step, config.train.steps + 1):
        if step > start.position.step:
          profiler.before(step)
          display.doing("training")
          state = _train(loop, step, state)
          if launch.stopped:
            break
          saver.trained(step, state)
        for number, mode in enumerate(launches_after(step, config), start=1):
          if number <= saver.position.done:
            continue
          if mode == Mode.GENERATE:
            display.doing(f"generating {len(resolved.requests)} requests")
            state = _generate(loop, step, state)
          else:
            display.doing("evaluating")
            state = _evaluate(loop, step, state)
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


class _Loop(NamedTuple):
  """What every launch of the run loop needs."""

  run: Run
  config: Any
  launch: Launcher
  folder: storage.Path
  display: Display
  stop: StopSignal
  batch_of: Callable[[int], StepBatch]  # a training step's
  rows: range  # of each micro-batch, those that lie on this process's devices
  saver: Saver
  track: Tracking

  @property
  def writes(self) -> bool:
    """Whether this process writes the shared files."""
    return jax.process_index() == 0


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


def _train(loop: _Loop, step: int, state: TrainState) -> TrainState:
  run, config = loop.run, loop.config
  start = time.perf_counter()
  pairs, rows, batch, read = loop.batch_of(step)
  waited = time.perf_counter() - start
  stop, save = loop.stop.requested, loop.saver.due
  state, report, seconds = loop.launch(state, Mode.TRAIN, batch, stop, save)
  if loop.launch.stopped:
    return state
  metrics = jax.tree.map(np.asarray, report.metrics)
  if not metrics.ok:
    bad = [pair.id for pair, is_bad in zip(pairs, metrics.pairs.bad, strict=True) if is_bad]
    leave_out(loop, step, state, metrics, bad, seconds)
  if read is not None:
    run.skips["train"] = add_reports(run.skips["train"], read)
    if read.skipped:
      loop.display.say(f"data: {skips_text(read)}")
  if not metrics.ok:
    return state
  tokens = sum(map(pair_length, pairs))
  row = {
    "step": step,
    "mode": "train",
    **train_metrics(metrics, run.program.step.simpo),
    "tokens_per_second": round(tokens / seconds, 1),
    "step_seconds": round(seconds, 4),
    "data_wait_seconds": round(waited, 4),
    "rows": rows,
    "row_fill": round(tokens / (rows * run.program.batch.row_length), 4),
  }
  if read is not None and read.skipped:
    row["data_skipped"] = read.skipped
  loop.track(row, pair_values(metrics.pairs, run.program.step.simpo))
  loop.display.train_step(step, config.train.steps, row)
  return state


def _generate(loop: _Loop, step: int, state: TrainState) -> TrainState:
  run, folder = loop.run, loop.folder
  state, report, seconds = loop.launch(state, Mode.GENERATE, stop=loop.stop.requested)
  if loop.launch.stopped:
    return state
  results = summarize(report.generated, run.places)
  process, processes = jax.process_index(), jax.process_count()

  def rows(numbers, logprobs):
    return sample_rows(
      numbers,
      run.requests,
      run.places,
      report.generated,
      results,
      run.tokenizer.decode,
      step,
      processes,
      logprobs,
    )

  own = [number for number, place in enumerate(run.places) if place.process == process]
  files.write_rows(
    files.samples_file(folder, step, process, processes),
    rows(own, loop.config.generate.logprobs),
  )
  shown = list(rows(range(min(loop.config.log.samples_shown, len(run.requests))), False))
  reasons = Counter(FINISH_REASONS[int(f)] for f in results.finish)
  tokens = int(results.count.sum())
  summary = {
    "step": step,
    "requests": len(run.requests),
    "generated_tokens": tokens,
    "step_seconds": round(seconds, 4),
    "tokens_per_second": round(tokens / seconds, 1),
    "finish_reasons": dict(reasons),
    "mean_tokens": tokens / len(run.requests),
    "mean_logprob_per_token": float(results.logprob.sum() / tokens),
    "samples": shown,
    "results": [
      {
        "prompt_index": r.prompt.index,
        "sample_index": r.sample,
        "process_index": run.places[i].process,
        "generated_token_count": int(results.count[i]),
        "finish_reason": FINISH_REASONS[int(results.finish[i])],
      }
      for i, r in enumerate(run.requests)
    ],
  }
  if loop.writes:
    files.write_json(files.samples_folder(folder, step) / "summary.json", summary)
  loop.track(*of_generation(summary))
  loop.display.generation(summary)
  return state


def _evaluate(loop: _Loop, step: int, state: TrainState) -> TrainState:
  run = loop.run
  size = run.program.batch.pairs
  batches, seconds = [], 0.0
  for start in range(0, len(run.eval_pairs), size):
    pairs = run.eval_pairs[start : start + size]
    batch = pack(pairs, run.program.batch, loop.rows)
    state, report, took = loop.launch(state, Mode.EVALUATE, batch, loop.stop.requested)
    if loop.launch.stopped:
      return state
    batches.append(jax.tree.map(np.asarray, report.metrics))
    seconds += took
  row = {
    "step": step,
    "mode": "evaluate",
    **evaluation_metrics(batches, run.program.step.simpo),
    "step_seconds": round(seconds, 4),
  }
  if not np.isfinite(row["loss"]):
    bad = np.concatenate([b.pairs.bad[b.pairs.present] for b in batches])
    names = [pair.id for pair, is_bad in zip(run.eval_pairs, bad, strict=True) if is_bad]
    raise UserError(
      f"step {step}: the held-out loss is not finite; pairs: {', '.join(names)}; remove them, or "
      "lower --config.train.learning_rate if training did this"
    )
  loop.track(row, pair_values(all_pairs(batches), run.program.step.simpo))
  loop.display.evaluation(row)
  if loop.writes:
    ids = [pair.id for pair in run.eval_pairs]
    files.write_rows(
      files.evaluation_file(loop.folder, step),
      held_out_rows(ids, batches, run.program.step.simpo),
    )
  return state
