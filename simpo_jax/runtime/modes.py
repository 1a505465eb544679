"""One function per mode: prepares the inputs, launches, and writes what the report says.

Each takes the train state and returns the state after the launch. If a stop was requested, the
launch changes nothing, and `StopRequested` is raised before anything is written.
"""

import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np

from simpo_jax.checkpoint.layout import Position
from simpo_jax.data.packing import pack, pair_contents, pair_length
from simpo_jax.data.skip_report import add_reports, check_read_so_far
from simpo_jax.errors import UserError
from simpo_jax.generate.results import check_finite, sample_rows, summarize
from simpo_jax.generate.types import FINISH_REASONS
from simpo_jax.program.ledger import Mode
from simpo_jax.runtime.bad_steps import handle_bad_step
from simpo_jax.runtime.console import skips_text
from simpo_jax.runtime.context import RunContext
from simpo_jax.runtime.progress import Progress
from simpo_jax.trackers.rows import generation_entry
from simpo_jax.train.metrics import (
  all_pairs,
  evaluation_metrics,
  held_out_rows,
  pair_values,
  train_metrics,
)
from simpo_jax.train.step import TrainState
from simpo_jax.workdir import files


def train(
  context: RunContext, progress: Progress, state: TrainState
) -> tuple[Progress, TrainState]:
  """Runs the next training step and writes its metrics, unless it is a bad step."""
  run, config = context.run, context.config
  start, step = time.perf_counter(), progress.step + 1
  pairs, rows, batch, contents, read = context.batch_of(step)
  waited = time.perf_counter() - start
  skips, news = progress.skips["train"], []
  if read is not None:
    news = [
      f"data: {n:,} of {read.total:,} rows read {note}"
      for note, n in read.notes.items()
      if note not in skips.notes
    ]
    skips = add_reports(skips, read)
    check_read_so_far(skips, config.data.max_skip_fraction)
  stop, save = context.stop.requested, context.saver.due
  state, report, seconds = context.launch(state, Mode.TRAIN, batch, contents, stop, save)
  metrics = jax.tree.map(np.asarray, report.metrics)
  if not metrics.ok:
    bad = [pair.id for pair, is_bad in zip(pairs, metrics.pairs.bad, strict=True) if is_bad]
    bad_steps = handle_bad_step(context, step, progress, state, metrics, bad, seconds)
    progress = progress._replace(bad_steps=bad_steps)
  skips = {**progress.skips, "train": skips}
  progress = progress._replace(position=Position(step), skips=skips)
  if read is not None and read.skipped:
    context.display.say(f"data: {skips_text(read)}")
  for text in news:
    context.display.say(text)
  if not metrics.ok:
    return progress, state
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
  context.track(row, pair_values(metrics.pairs, run.program.step.simpo))
  context.display.train_step(step, config.train.steps, row)
  return progress, state


def generate(context: RunContext, step: int, state: TrainState) -> TrainState:
  """Generates for all requests; writes this host's samples and the summary of all hosts'.

  Raises:
    UserError: logits are not finite, on every host alike and after everything is written.
  """
  run, folder = context.run, context.folder
  state, report, seconds = context.launch(state, Mode.GENERATE, stop=context.stop.requested)
  results = summarize(report.generated, run.assignments)
  process, processes = jax.process_index(), jax.process_count()

  def rows(indices: Iterable[int], logprobs: bool) -> Iterator[dict[str, Any]]:
    return sample_rows(
      indices,
      run.requests,
      run.assignments,
      report.generated,
      results,
      run.tokenizer.decode,
      step,
      processes,
      logprobs,
      context.config.generate.stripped,
    )

  local = [i for i, assignment in enumerate(run.assignments) if assignment.process == process]
  files.write_rows(
    files.samples_file(folder, step, process, processes),
    rows(local, context.config.generate.logprobs),
  )
  shown = list(rows(range(min(context.config.log.samples_shown, len(run.requests))), False))
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
    "mean_logprob_per_token": float(results.logprob.sum() / max(tokens, 1)),
    "samples": shown,
    "results": [
      {
        "prompt_index": r.prompt.index,
        "sample_index": r.sample,
        "process_index": run.assignments[i].process,
        "generated_token_count": int(results.count[i]),
        "finish_reason": FINISH_REASONS[int(results.finish[i])],
      }
      for i, r in enumerate(run.requests)
    ],
  }
  if context.writes:
    files.write_json(files.samples_folder(folder, step) / "summary.json", summary)
  context.track(*generation_entry(summary))
  context.display.generation(summary)
  check_finite(run.requests, results)
  return state


def evaluate(context: RunContext, step: int, state: TrainState) -> TrainState:
  """Computes and writes the metrics of the held-out pairs, one batch per launch."""
  run = context.run
  size = run.program.batch.pairs
  batches, seconds = [], 0.0
  for start in range(0, len(run.eval_pairs), size):
    pairs = run.eval_pairs[start : start + size]
    batch = pack(pairs, run.program.batch, context.local_rows)
    state, report, took = context.launch(
      state, Mode.EVALUATE, batch, pair_contents(pairs), context.stop.requested
    )
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
  context.track(row, pair_values(all_pairs(batches), run.program.step.simpo))
  context.display.evaluation(row)
  if context.writes:
    ids = [pair.id for pair in run.eval_pairs]
    files.write_rows(
      files.evaluation_file(context.folder, step),
      held_out_rows(ids, batches, run.program.step.simpo),
    )
  return state
