"""What a host does around a launch of each mode: what goes in, and what becomes of the report.

Each function takes the train state and returns that after the launch. If a stop was requested,
the launch has changed nothing, and nothing is written.
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from simpo_jax import storage
from simpo_jax import workdir as files
from simpo_jax.data.feed import StepBatch
from simpo_jax.data.packing import pack, pair_length
from simpo_jax.data.skips import add_reports
from simpo_jax.data.stream import check_skips
from simpo_jax.display import Display, skips_text
from simpo_jax.errors import UserError
from simpo_jax.generate import FINISH_REASONS
from simpo_jax.launch import Launcher, StopSignal
from simpo_jax.ledger import Mode
from simpo_jax.metrics import (
  all_pairs,
  evaluation_metrics,
  held_out_rows,
  pair_values,
  train_metrics,
)
from simpo_jax.nonfinite import leave_out
from simpo_jax.requests import sample_rows, summarize
from simpo_jax.resolve import Run
from simpo_jax.saver import Saver
from simpo_jax.tracking.entries import of_generation
from simpo_jax.tracking.tracking import Tracking
from simpo_jax.train import TrainState


class Loop(NamedTuple):
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


def train(loop: Loop, step: int, state: TrainState) -> TrainState:
  """Takes a training step and writes its metrics; what is not finite is for `leave_out`."""
  run, config = loop.run, loop.config
  start = time.perf_counter()
  pairs, rows, batch, read = loop.batch_of(step)
  waited = time.perf_counter() - start
  skips = run.skips["train"]
  if read is not None:
    skips = add_reports(skips, read)
    check_skips(skips, config.data.max_skip_fraction)
  stop, save = loop.stop.requested, loop.saver.due
  state, report, seconds = loop.launch(state, Mode.TRAIN, batch, stop, save)
  if loop.launch.stopped:
    return state
  metrics = jax.tree.map(np.asarray, report.metrics)
  if not metrics.ok:
    bad = [pair.id for pair, is_bad in zip(pairs, metrics.pairs.bad, strict=True) if is_bad]
    leave_out(loop, step, state, metrics, bad, seconds)
  run.skips["train"] = skips
  if read is not None and read.skipped:
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


def generate(loop: Loop, step: int, state: TrainState) -> TrainState:
  """Generates for all requests; writes this host's samples, and the summary of all."""
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


def evaluate(loop: Loop, step: int, state: TrainState) -> TrainState:
  """Computes and writes the metrics of the held-out pairs, a batch in each launch."""
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
