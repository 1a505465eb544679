"""Benchmarks the data pipeline on many synthetic pairs: speed, memory, and time to resume.

  python bench/data.py --pairs=1000000 --model=SmolLM2-135M-Instruct.Q4_1.gguf

The figures in docs/performance.md were measured with --batch=64 --windows=2 in addition.

Each part runs in a separate process, to measure its peak memory:

  prepare   python -m simpo_jax.prepare of one JSONL file, on all cores
  verify    python -m simpo_jax.prepare --verify of the prepared dataset
  read      random reads, tokenization and packing of `--windows` windows of 32 steps of
            `--batch` pairs, for each tokenizer, near the first step and near a late one;
            `start_seconds` is the time from opening the dataset to the first batch

Peak memory of `prepare` is that of its largest process. All files are in a temporary
folder under `--scratch`, deleted at the end.
"""

import json
import pathlib
import subprocess
import sys
import tempfile
import time

import common
import numpy as np
from absl import app, flags

from simpo_jax.errors import UserError

HERE = pathlib.Path(__file__).resolve().parent
WORDS = 4096  # vocabulary of the synthetic text

_PAIRS = flags.DEFINE_integer("pairs", 1_000_000, "synthetic pairs", lower_bound=1000)
_MODEL = flags.DEFINE_string(
  "model", None, ".gguf file or folder whose tokenizer is timed in addition"
)
_BATCH = flags.DEFINE_integer("batch", 64, "pairs per step")
_WINDOWS = flags.DEFINE_integer("windows", 3, "number of timed windows of 32 steps")
_WORKERS = flags.DEFINE_integer("workers", 4, "threads that read and tokenize")
_SCRATCH = flags.DEFINE_string(
  "scratch", None, "folder for the data; default: the system's temporary folder"
)
_JOB = flags.DEFINE_string("job", None, "(internal) the part to run in this process, as JSON")


def write_pairs(path: pathlib.Path, count: int, seed: int = 0) -> None:
  """Writes JSONL rows {prompt: [message], chosen, rejected} of about 1,500 characters."""
  rng = np.random.default_rng(seed)
  lengths = rng.integers(2, 9, WORDS)
  words = np.array(["".join(map(chr, rng.integers(97, 123, n))) for n in lengths])
  text = " ".join(words[rng.integers(0, WORDS, 2**18)])
  with open(path, "w") as f:
    for number in range(count):
      starts = rng.integers(0, len(text) - 4000, 3)
      sizes = (rng.gamma(2.0, 250, 3) + 20).astype(int).clip(20, 4000)
      prompt, chosen, rejected = (text[a : a + n] for a, n in zip(starts, sizes, strict=True))
      message = {"role": "user", "content": f"{number} {prompt}"}
      f.write(json.dumps({"prompt": [message], "chosen": chosen, "rejected": rejected}) + "\n")


def main(argv: list[str]) -> None:
  """Runs all parts and prints their tables."""
  del argv
  if _JOB.value:
    _work(json.loads(_JOB.value))
    return
  with tempfile.TemporaryDirectory(prefix="simpo_jax_data_", dir=_SCRATCH.value) as folder:
    rows = _measure(pathlib.Path(folder))
  ours = next(row["pairs/s"] for row in rows if row["part"] == "read")
  result = common.result("data", "pairs per second, read", rows, ours=ours)
  common.report(f"{_PAIRS.value:,} pairs", {**result, "pairs": _PAIRS.value})


def _measure(folder: pathlib.Path) -> list[dict]:
  source = folder / "pairs.jsonl"
  common.say(f"writing {_PAIRS.value:,} pairs")
  write_pairs(source, _PAIRS.value)
  command = [sys.executable, "-m", "simpo_jax.prepare", f"--source={source}", f"--out={folder}"]
  common.say("preparing them")
  used = _timed(folder, [*command, "--name=made"])
  shards = list((folder / "made" / "1.0.0").glob("*array_record*"))
  rows = [
    {
      "part": "prepare",
      **used,
      "pairs/s": _PAIRS.value / used["seconds"],
      "pairs/cpu_s": _PAIRS.value / used["cpu_seconds"],
      "source_GiB": source.stat().st_size / 2**30,
      "prepared_GiB": sum(s.stat().st_size for s in shards) / 2**30,
      "shards": len(shards),
    }
  ]
  source.unlink()
  command = [sys.executable, "-m", "simpo_jax.prepare", "--verify=tfds:made", f"--out={folder}"]
  rows.append({"part": "verify", **_timed(folder, command)})
  for model in ("embedded", *([_MODEL.value] if _MODEL.value else [])):
    for late in (False, True):
      common.say(f"reading with the tokenizer of {model}, {'late' if late else 'early'}")
      job = {"data": str(folder / "made"), "model": model, "late": late, "out": str(folder / "out")}
      command = [sys.executable, __file__, *sys.argv[1:], f"--job={json.dumps(job)}"]
      peak = _timed(folder, command)["peak_MiB"]
      out = json.loads(pathlib.Path(job["out"]).read_text())
      rows.append({"part": "read", **out, "peak_MiB": peak})
  return rows


# A child's peak RSS includes its parent's memory at the fork: launch from a small process.
_LAUNCH = """
import os, subprocess, sys, time
start = time.perf_counter()
process = subprocess.Popen(sys.argv[2:], stdout=sys.stderr)
_, status, usage = os.wait4(process.pid, 0)
cpu = usage.ru_utime + usage.ru_stime
with open(sys.argv[1], "w") as f:
  print(status, time.perf_counter() - start, cpu, usage.ru_maxrss, file=f)
"""


def _timed(folder: pathlib.Path, command: list[str]) -> dict[str, float]:
  """Runs a command; returns its wall time, the CPU time and peak memory of its processes."""
  out = folder / "usage"
  subprocess.run([sys.executable, "-S", "-c", _LAUNCH, str(out), *command], check=True)
  status, seconds, cpu, peak = out.read_text().split()
  if int(status):
    raise UserError(f"{' '.join(command)} ended with status {status}")
  unit = 1 if sys.platform == "darwin" else 1024
  return {
    "seconds": float(seconds),
    "cpu_seconds": float(cpu),
    "peak_MiB": int(peak) * unit / 2**20,
  }


def _work(job: dict) -> None:
  from simpo_jax.data.mixture import Mixture, open_stream
  from simpo_jax.data.prefetch import prefetch_batches
  from simpo_jax.data.prepared.dataset import open_prepared
  from simpo_jax.data.steps import window_source
  from simpo_jax.settings import DataSettings
  from simpo_jax.tokenizer.load import load_tokenizer
  from simpo_jax.train.batch import batch_shape

  data, batch = DataSettings(max_length=2048, workers=_WORKERS.value), _BATCH.value
  tokenizer = load_tokenizer(job["model"])
  tokenizer.encode("warm")
  before = common.peak_rss()
  start = time.perf_counter()
  mixture = Mixture((open_prepared(f"tfds:{job['data']}"),), ())
  opened = time.perf_counter() - start
  read = open_stream(mixture, tokenizer, data, batch, seed=0)
  shape = batch_shape(batch, 2 * data.max_length, data.max_pairs_per_row, 8)
  window = window_source(read, batch, shape.row_length, shape.slots, data.lookahead, 0)
  # The late step is in the middle of the third epoch.
  step = 1 if not job["late"] else 5 * len(mixture) // (2 * batch)
  with prefetch_batches(window, data.lookahead, shape, range(shape.rows)) as batch_of:
    batch_of(step)
    started = time.perf_counter() - start
    # Start timing at the next window's first step, so that prefetched batches do not count.
    first = step - (step - 1) % data.lookahead + data.lookahead
    batch_of(first)
    clock, cpu = time.perf_counter(), time.process_time()
    steps = _WINDOWS.value * data.lookahead
    tokens = 0
    for s in range(first, first + steps + 1):
      made = batch_of(s)
      tokens += int((made.batch.target_id >= 0).sum())
    seconds, cpu = time.perf_counter() - clock, time.process_time() - cpu
  result = {
    "tokenizer": pathlib.Path(job["model"]).name,
    "step": step,
    "open_seconds": opened,
    "start_seconds": started,
    "pairs/s": steps * batch / seconds,
    "pairs/cpu_s": steps * batch / cpu,
    "response_tokens/s": tokens / seconds,
    "grown_MiB": (common.peak_rss() - before) / 2**20,
  }
  pathlib.Path(job["out"]).write_text(json.dumps(result))


if __name__ == "__main__":
  app.run(common.with_user_errors(main))
