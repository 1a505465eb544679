"""Converts preference data to a prepared dataset: validated, checksummed, with random access.

Examples:
  python -m simpo_jax.prepare --source=pairs.jsonl --out=data
  python -m simpo_jax.prepare --source=a.jsonl --source=folder --out=data --name=mine --workers=8
  python -m simpo_jax.prepare --source=HuggingFaceH4/ultrafeedback_binarized:data/train_prefs-* \\
    --out=data --name=ultrafeedback --eval_fraction=0.01
  python -m simpo_jax.prepare --verify=tfds:mine --out=data

A source is a file (.json .jsonl .csv .tsv, also .gz or .zst; .parquet .arrow), a link to one
(https://...), a glob, a folder or FOLDER:PATTERN, or a dataset on the Hugging Face hub,
ORG/NAME[:PATTERN]. Files, folders and --out may be in a bucket: gs://BUCKET/...,
s3://BUCKET/.... A run reads the result with --config.data.train=tfds:NAME --config.data.dir=OUT.
"""

import contextlib
import os
import pathlib
import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from simpo_jax import storage
from simpo_jax.data.rows.fields import COLUMNS_HELP
from simpo_jax.errors import UserError, one_line
from simpo_jax.storage.paths import brief, check_path, is_link

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_VERSION = re.compile(r"\d+\.\d+\.\d+")
_FLAGS = (
  "source", "columns", "out", "name", "version", "workers", "eval_fraction", "max_skip_fraction",
  "verify", "force", "debug",
)  # fmt: skip


def _define_flags() -> None:
  flags.DEFINE_multi_string(
    "source",
    None,
    "File, folder, FOLDER:PATTERN, glob, link, or ORG/NAME[:PATTERN] on the hub; repeatable.",
  )
  flags.DEFINE_multi_string(
    "columns",
    [],
    COLUMNS_HELP,
  )
  flags.DEFINE_string("out", None, "Folder for datasets; default: TFDS_DATA_DIR.")
  flags.DEFINE_string("name", None, "Dataset name; default: derived from the source.")
  flags.DEFINE_string("version", "1.0.0", "Dataset version; a changed source needs a new one.")
  flags.DEFINE_integer("workers", 0, "Processes; 0: one per core.", lower_bound=0)
  flags.DEFINE_float("eval_fraction", 0.0, "Fraction of pairs for the test split.", 0.0, 0.5)
  flags.DEFINE_float(
    "max_skip_fraction", 0.1, "Fail if more than this fraction of rows is unusable.", 0.0, 1.0
  )
  flags.DEFINE_string("verify", None, "Verify the checksums of tfds:NAME_OR_DIR; write nothing.")
  flags.DEFINE_bool("force", False, "Replace an existing dataset.")
  flags.DEFINE_bool("debug", False, "Show the stack trace of errors.")


def main(argv: Sequence[str]) -> None:
  """Prepares or verifies a dataset; returns only if it is complete."""
  from simpo_jax.cli import refuse_arguments
  from simpo_jax.data.prepared.dataset import verify
  from simpo_jax.data.prepared.find import default_dir

  values = flags.FLAGS
  refuse_arguments(argv, "--source=pairs.jsonl")
  for source in values.source or ():
    check_path("--source", source)
  check_path("--out", values.out or "")
  check_path("--verify", (values.verify or "").removeprefix("tfds:"))
  out = storage.open_path(values.out, "--out") if values.out else default_dir()
  if values.verify:
    start = time.perf_counter()
    files, size = verify(values.verify, out)
    seconds = time.perf_counter() - start
    print(f"{values.verify}: {files} shards, {size:,} bytes, all checksums match ({seconds:.1f} s)")
    return
  if not values.source:
    raise UserError("name what to prepare: --source=pairs.jsonl (see --help)")
  prepare(
    values.source,
    out,
    values.name,
    values.version,
    values.workers or cores(),
    values.eval_fraction,
    values.max_skip_fraction,
    values.force,
    values.columns,
  )


def prepare(
  sources: Sequence[str],
  out: storage.Path,
  name: str | None = None,
  version: str = "1.0.0",
  workers: int = 1,
  eval_fraction: float = 0.0,
  max_skip_fraction: float = 0.1,
  force: bool = False,
  columns: Sequence[str] = (),
) -> storage.Path:
  """Prepares a dataset, shows progress, and returns its folder.

  Args:
    sources: what `sources.open_source` accepts.
    out: the folder of datasets, TFDS's data_dir.
    name: None: derived from the first source.
    workers: number of processes.
    eval_fraction: fraction of pairs in the split "test".
    max_skip_fraction: the maximum fraction of unusable rows.
    force: replace an existing dataset.
    columns: FIELD=COLUMN each, like `data.columns`.

  Raises:
    UserError: see `builder.build`.
  """
  from simpo_jax.data.prepared.builder import Target, build
  from simpo_jax.data.rows.fields import check_columns, parse_columns
  from simpo_jax.loaded_model.messages import in_flag_names

  name = name or default_name(sources[0])
  _check_names(name, version)
  opened = [_open(source) for source in sources]
  revisions = [source.revision for source, _ in opened if source.revision]
  target = Target(out, name, version, {"hub": revisions})

  def check(names: Mapping[Any, Mapping[str, None]]) -> None:
    for source, files in opened:
      check_columns(mapping, {n: None for file in files for n in names[file]}, source.name)

  start = time.perf_counter()
  with in_flag_names(), _progress_bar() as progress:
    mapping = parse_columns(columns)
    record, new = build(
      [file for _, files in opened for file in files],
      target,
      eval_fraction,
      max_skip_fraction,
      workers,
      force,
      progress=progress,
      columns=mapping,
      check=check,
    )
  _report(record, target, new, time.perf_counter() - start)
  return target.folder


def _open(name: str) -> tuple[Any, list[Any]]:
  """(source, its files); says which are left out."""
  from simpo_jax.data.sources import open_source

  source = open_source(name)
  for line in source.left_out():
    print(one_line(line))
  return source, source.files()


def _check_names(name: str, version: str) -> None:
  if not _NAME.fullmatch(name):
    raise UserError(
      f"--name={name} must be lower-case letters, digits and _, beginning with a letter"
    )
  if not _VERSION.fullmatch(version):
    raise UserError(f"--version={version} must be three numbers, such as 1.0.0")


def default_name(source: str) -> str:
  """Returns a dataset name derived from its source: my-Pairs.v2.jsonl.gz -> my_pairs_v2."""
  from simpo_jax.data.readers.links import file_name

  local = os.path.exists(source) or storage.is_remote(source)
  stem = source if local else source.split(":")[0]
  stem = file_name(source) if is_link(source) else pathlib.Path(stem).name
  stem = re.sub(r"(\.jsonl?|\.parquet|\.arrow|\.[ct]sv)?(\.gz|\.zst)?$", "", stem.lower())
  name = re.sub(r"[^a-z0-9]+", "_", stem).strip("_")
  return name if name[:1].isalpha() else f"pairs_{name}".strip("_")


@contextlib.contextmanager
def _progress_bar():
  from rich.console import Console
  from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

  with Progress(
    TextColumn("preparing"),
    BarColumn(),
    TextColumn("{task.percentage:.0f}%  {task.fields[pairs]:,} pairs"),
    TimeElapsedColumn(),
    TextColumn("left"),
    TimeRemainingColumn(),
    console=Console(file=sys.stdout),
    transient=True,
  ) as bar:
    task = bar.add_task("", total=None, pairs=0)
    yield lambda done, total, pairs: bar.update(task, completed=done, total=total, pairs=pairs)


def _report(record: dict[str, Any], target: Any, new: bool, seconds: float) -> None:
  from rich.console import Console
  from rich.table import Table

  from simpo_jax.data.readers.splits import HELD_OUT
  from simpo_jax.data.rows.reasons import REASONS
  from simpo_jax.loaded_model.messages import flag_names

  console = Console(highlight=False, soft_wrap=True)
  pairs = ", ".join(f"{n:,} {split}" for split, n in record["pairs"].items())
  shards = sum(map(len, record["shards"].values()))
  size = sum(s["bytes"] for parts in record["shards"].values() for s in parts)
  rate = sum(record["pairs"].values()) / max(seconds, 1e-9)
  outcome = f"in {seconds:.1f} s, {rate:,.0f} pairs/s" if new else "exists already, nothing done"
  console.print(
    f"{target.name} {target.version}: {pairs} pairs of {record['rows']:,} rows; {outcome}"
  )
  if record["skipped"]:
    table = Table("skipped", "rows", "meaning", "such as", show_edge=False)
    for reason, count in record["skipped"].items():
      meaning, examples = flag_names(REASONS[reason]), ", ".join(record["examples"][reason])
      table.add_row(reason, f"{count:,}", meaning, examples)
    console.print(table)
  for note, count in record.get("notes", {}).items():
    console.print(flag_names(f"{count:,} rows {note}"))
  console.print(f"{shards} shards, {size:,} bytes in {brief(target.folder)}")
  use = f"--config.data.train=tfds:{target.name} --config.data.dir={shlex.quote(brief(target.out))}"
  if record["pairs"].get(HELD_OUT) and "split_by" not in record:
    console.print(
      "an earlier version held pairs out by row, so the splits may share prompts; --force prepares "
      "it again, by prompt"
    )
  if not record["pairs"].get(HELD_OUT):
    use += " --config.evaluate.every=0 --config.evaluate.at_end=False"
    console.print("no pairs are held out for evaluation; --eval_fraction=0.05 would hold some out")
  console.print(f"use: {use}")


def cores() -> int:
  """Returns the number of CPU cores available to this process."""
  return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
  from simpo_jax.cli import run_program

  _define_flags()
  run_program(main, _FLAGS)
