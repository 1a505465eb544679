"""Terminal output of process 0: banner, a line per step, samples, closing table."""

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
  BarColumn,
  MofNCompleteColumn,
  Progress,
  SpinnerColumn,
  TextColumn,
  TimeElapsedColumn,
  TimeRemainingColumn,
)
from rich.table import Table

from simpo_jax import storage
from simpo_jax.checkpoint.resume import ResumePoint
from simpo_jax.data.prompts import Prompts
from simpo_jax.data.skip_report import SkipReport
from simpo_jax.generate.on_mesh import page_bytes
from simpo_jax.models.lora import all_tensors
from simpo_jax.program.build import Compiled
from simpo_jax.runtime import cpu_bfloat16
from simpo_jax.runtime.resolve import ResolvedRun, devices_text
from simpo_jax.storage.paths import brief
from simpo_jax.train.step import StepConfig

_SAMPLE_WIDTH = 300  # characters shown of a generation


def human_bytes(n: float, form: str = ".1f") -> str:
  """Formats a number of bytes, such as "1.5 KiB" for 1536."""
  for unit in ("B", "KiB", "MiB", "GiB"):
    if n < 1024 or unit == "GiB":
      return f"{n:.0f} {unit}" if unit == "B" else f"{n:{form}} {unit}"
    n /= 1024
  raise AssertionError


class Display:
  """Prints to a terminal or, line by line, to redirected output; silent unless `active`."""

  def __init__(self, total_steps: int, active: bool):
    self._console = Console(quiet=not active, highlight=False)
    self._progress = Progress(
      SpinnerColumn(),
      TextColumn("{task.description}"),
      BarColumn(),
      MofNCompleteColumn(),
      TextColumn("steps"),
      TimeElapsedColumn(),
      TextColumn("left"),
      TimeRemainingColumn(),
      console=self._console,
      transient=True,
      disable=not (active and self._console.is_terminal),
    )
    self._task = self._progress.add_task("training", total=total_steps)

  @contextlib.contextmanager
  def running(self):
    """Shows the progress bar while the body runs."""
    with self._progress:
      yield

  def say(self, text: str) -> None:
    """Prints a message as plain text, without rich's markup."""
    # Wrap at words on a terminal only: in redirected output a message stays on one line.
    self._console.print(escape(text), soft_wrap=not self._console.is_terminal)

  def doing(self, what: str) -> None:
    """Sets the description next to the progress bar."""
    self._progress.update(self._task, description=what)

  def banner(
    self, run: ResolvedRun, skips: Mapping[str, SkipReport], params: int, workdir: storage.Path
  ) -> None:
    """Prints what is about to run, before compilation.

    Args:
      skips: counts over all rows read so far, including those read before a resume.
      params: number of parameters of the model.
    """
    model, program = run.model, run.program
    faster = cpu_bfloat16.advice(program.mesh.devices.flat[0].platform, program.step.dtype.name)
    table = Table.grid(padding=(0, 2))
    rows = [
      ("devices", devices_text(program.mesh)),
      (
        "model",
        f"{model.name}: {model.config.model_type}, {params / 1e6:,.1f}M parameters, "
        f"{program.param_dtype} weights, {program.step.dtype} compute",
      ),
      *(("", note) for note in (*model.notes, faster) if note),
      *_adapters_row(program.step),
      ("data", f"{len(run.train_pairs)} training pairs, {len(run.eval_pairs)} held out"),
      *(row for name, report in skips.items() for row in _data_rows(name, report)),
      *(("  note", note) for note in run.notes),
      (
        "batch",
        f"{program.batch.pairs} pairs a step in rows of {program.batch.row_length} "
        f"tokens, {program.batch.rows} row(s) at a time",
      ),
    ]
    if run.requests:
      g = program.generate
      pool = g.num_pages * page_bytes(
        program.step.model, program.mesh, program.mode, g.page_size, program.step.dtype
      )
      rows += [
        (
          "generate",
          f"{len(run.requests)} requests, up to {g.max_new_tokens} new tokens each, "
          f"{g.slots} at once, {program.mode}",
        ),
        *_prompt_rows(run.prompts),
        (
          "  KV pool",
          f"{g.num_pages} pages of {g.page_size} tokens, {human_bytes(pool)} per device: "
          f"{run.pool.reason}",
        ),
      ]
    note = f"; {run.attention_note}" if run.attention_note else ""
    kernels = f"{program.step.attention} in training, {program.generate.attention} in generation"
    rows.append(("attention", kernels + note))
    rows.append(("workdir", brief(workdir)))
    for name, text in rows:
      table.add_row(f"[bold]{name}[/bold]", escape(text))
    self._console.print(table)

  def starting_from(self, start: ResumePoint, shared: bool) -> None:
    """Prints which checkpoint the run starts from, with its notes.

    Args:
      shared: whether all hosts see the same workdir.
    """
    for note in start.notes:
      self.say(note)
    if start.is_resume:
      self.say(f"resuming after step {start.position.step} from {start.folder}")
    elif start.folder is not None:
      self.say(f"beginning with {'the weights of ' if start.weights_only else ''}{start.folder}")
    if not shared:
      self.say("no checkpoints: the hosts do not share the workdir; name one that all see")

  def compiled(self, compiled: Compiled, changes: list[str]) -> None:
    """Prints compile time, peak memory, and what `resume.changes_since` found."""
    peaks = compiled.memory.peaks()
    peaks.pop("abort", None)
    self.say(
      f"compiled one program ({compiled.fingerprint}) in {compiled.compile_seconds:.1f} s; peak "
      f"memory per device: {', '.join(f'{k} {human_bytes(v)}' for k, v in peaks.items())}; the "
      f"train state, updated in place, is {human_bytes(compiled.memory.aliased)} of it"
    )
    if changes:
      self.say(
        f"not the program that wrote the checkpoint ({'; '.join(changes)}): the run continues, but "
        "its numbers may differ in the last digits from those of a run that was never interrupted"
      )

  def train_step(self, step: int, total: int, row: dict[str, Any]) -> None:
    """Prints the metrics of a training step."""
    self.say(
      f"step {step:>{len(str(total))}}/{total}  loss {row['loss']:.4f}  "
      f"margin {row['rewards/margins']:+.4f}  accuracy {row['rewards/accuracies']:.2f}  "
      f"grad {row['grad_norm']:.3g}  lr {row['learning_rate']:.2e}  "
      f"{row['tokens_per_second']:,.0f} tok/s  {row['step_seconds']:.2f} s"
    )
    self._progress.update(self._task, completed=step)

  def generation(self, summary: dict[str, Any]) -> None:
    """Prints the summary of a generation, and some of its samples."""
    reasons = ", ".join(f"{n} {reason}" for reason, n in summary["finish_reasons"].items())
    self.say(
      f"generated {summary['generated_tokens']:,} tokens for {summary['requests']} requests "
      f"in {summary['step_seconds']:.1f} s ({summary['tokens_per_second']:,.0f} tok/s; {reasons})"
    )
    for row in summary["samples"]:
      text = " ".join(row["generated_text"].split())
      shown = text[:_SAMPLE_WIDTH] + ("…" if len(text) > _SAMPLE_WIDTH else "")
      no_text = f"({row['generated_token_count']} tokens, none of them text)"
      prompt = " ".join(row["prompt"].split())[:80]
      self.say(f"  [{row['prompt_index']}] {prompt}\n      → {shown or no_text}")

  def evaluation(self, row: dict[str, Any]) -> None:
    """Prints the metrics of an evaluation."""
    pairs = f"{row['pairs']} pair{'s' if row['pairs'] != 1 else ''}"
    self.say(
      f"held out ({pairs})  loss {row['loss']:.4f}  "
      f"margin {row['rewards/margins']:+.4f}  accuracy {row['rewards/accuracies']:.3f}"
    )

  def closing(self, record: dict[str, Any], workdir: storage.Path) -> None:
    """Prints launches and their times by mode, and where the results are."""
    table = Table(title=None, show_edge=False, pad_edge=False)
    for name in ("launches", "count", "seconds", "seconds each"):
      table.add_column(name, justify="left" if name == "launches" else "right")
    seconds: dict[str, list[float]] = {}
    for entry in record["timings"]["launches"]:
      seconds.setdefault(entry["mode"], []).append(entry["seconds"])
    for mode, times in seconds.items():
      table.add_row(mode, str(len(times)), f"{sum(times):.1f}", f"{sum(times) / len(times):.2f}")
    self._console.print(table)
    self.say(
      f"{record['status']}: {record['compiles']} compile, {record['executables']} "
      f"executable, {len(record['launches'])} launches, {record['timings']['total']:.0f} s in "
      f"all, peak host memory {human_bytes(record['peak_rss_bytes'])}; see {brief(workdir)}"
    )


def _adapters_row(step: StepConfig) -> list[tuple[str, str]]:
  lora = step.lora
  if lora is None:
    return []
  count = sum(math.prod(t.shape) for t in all_tensors(step.model, lora)["lora"].values())
  return [
    (
      "  adapters",
      f"rank {lora.rank}, alpha {lora.alpha:g}, {count / 1e6:,.2f}M parameters train: "
      f"{', '.join(lora.targets)}",
    )
  ]


def _data_rows(name: str, report: SkipReport) -> list[tuple[str, str]]:
  notes = [("", f"{count:,} rows {note}") for note, count in report.notes.items()]
  return [(f"  {name}", skips_text(report)), *notes]


def _prompt_rows(prompts: Prompts) -> list[tuple[str, str]]:
  rows = [("", line) for line in prompts.left_out]
  rows += [("", f"{count:,} prompts {note}") for note, count in prompts.notes.items()]
  if prompts.skipped:
    rows.append(("", f"{len(prompts.skipped):,} prompts left out, first: {prompts.skipped[0]}"))
  return rows


def skips_text(report: SkipReport) -> str:
  """Formats "298 of 300 rows kept; skipped: 2 identical (first: pairs.jsonl:7); cut: 91 prompt"."""
  if not report.total:
    return "read, tokenized and checked while training"
  parts = [f"{report.kept} of {report.total} rows kept"]
  for name, counts in (("skipped", report.skipped), ("cut", report.truncated)):
    first = report.examples if name == "skipped" else {}
    listed = ", ".join(
      f"{n} {reason}" + (f" (first: {first[reason][0]})" if first.get(reason) else "")
      for reason, n in counts.items()
      if n
    )
    if listed:
      parts.append(f"{name}: {listed}")
  return "; ".join(parts)
