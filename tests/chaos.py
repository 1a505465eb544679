"""Kills a run at random moments, again and again, and compares what comes of it in the end.

  python tests/chaos.py --kills=30 --processes=1 --seed=0 [--folder=DIR]

A dataset is prepared and trained on, twice: left alone, and killed (SIGKILL; of several
processes, one) and started again with the same command until it is done. Both must have left
the same: the dataset's files; the arrays of the last checkpoint, the metrics without times,
every sample, and the launches. One kill in six hits the preparation. The others come when the
run has written so many rows since its start, and a random part of a launch later; one in ten
while it starts. Exit code 0 if all is the same.
"""

import argparse
import collections
import contextlib
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from support.folders import ROOT
from support.hosts import flags
from support.run_outcome import differing, outcome, record

_PAIRS = 3000
_ROWS = 12  # at most, between a start and its kill
_START_SECONDS = 6.0  # of a start that is killed before its first row
_LIMIT = 600  # seconds of a start without a row


def settings(folder, kills):
  """A run that is long enough to be killed so often, with some 1.75 rows a step."""
  return {
    "data.train": ("tfds:pairs:train[:40]",),
    "data.eval": ("tfds:pairs:test[:6]",),
    "data.dir": str(folder / "prepared"),
    "train.steps": 12 * kills + 6,
    "train.batch_size": 6,
    "data.max_length": 128,
    "data.max_prompt_length": 64,
    "data.row_length": 256,
    "generate.at_steps": (),
    "generate.every": 2,
    "generate.count": 6,
    "generate.max_new_tokens": 16,
    "generate.page_size": 16,
    "evaluate.every": 4,
    "checkpoint.every": 3,
    "checkpoint.keep": 2,
  }


def start(folder, processes, kills, cache):
  """Starts all processes of the run, as its one command does."""
  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
  started = []
  for index in range(processes):
    env = dict(
      os.environ,
      JAX_PLATFORMS="cpu",
      XLA_FLAGS="--xla_force_host_platform_device_count=1",
      # Compiling would take most of the time, and is not what is tried here.
      JAX_COMPILATION_CACHE_DIR=str(cache),
      JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
      PYTHONPATH=os.pathsep.join([str(ROOT), *filter(None, sys.path)]),
    )
    if processes > 1:
      env["JAX_COORDINATOR_ADDRESS"] = f"127.0.0.1:{port}"
      env |= {"JAX_NUM_PROCESSES": str(processes), "JAX_PROCESS_ID": str(index)}
    with open(folder.parent / f"{folder.name}_{index}.log", "a") as log:
      chosen = settings(folder.parent, kills)
      line = [sys.executable, "-m", "simpo_jax.main", *flags(folder, chosen)]
      started.append(subprocess.Popen(line, env=env, stdout=log, stderr=subprocess.STDOUT))
  return started


def written(folder):
  """Rows of metrics so far."""
  path = folder / "metrics.jsonl"
  return path.read_bytes().count(b"\n") if path.exists() else 0


def end(processes, seconds=120):
  """Waits for all to end; returns their exit codes."""
  deadline = time.monotonic() + seconds
  try:
    return [p.wait(max(0.1, deadline - time.monotonic())) for p in processes]
  finally:
    for process in processes:
      process.kill()
      process.wait()


def kill_once(folder, processes, rng, launch_seconds):
  """Kills one of the processes at a random moment; returns what it was doing, None if done."""
  early = rng.random() < 0.1
  rows, after = rng.randint(0, _ROWS), rng.random()
  victim = rng.choice(processes)
  deadline = time.monotonic() + (after * _START_SECONDS if early else _LIMIT)
  # Resuming cuts rows off: what is counted is what this start has written.
  seen, new = written(folder), 0
  if early:
    while time.monotonic() < deadline and written(folder) <= seen:
      time.sleep(0.01)
  else:
    while new <= rows and all(p.poll() is None for p in processes):
      now = written(folder)
      new, seen = new + max(0, now - seen), now
      if time.monotonic() > deadline:
        raise TimeoutError("no row was written")
      time.sleep(0.002)
    time.sleep(after * 2 * launch_seconds)
  if victim.poll() is not None:
    return None
  victim.send_signal(signal.SIGKILL)
  if early:
    # It may not have joined the others yet. They would wait for it; a launcher ends them.
    with contextlib.suppress(subprocess.TimeoutExpired):
      end(processes, 20)
    return "starting"
  end(processes)
  if list((folder / "checkpoints").glob("*tmp*")):
    return "saving"
  last = (folder / "metrics.jsonl").read_text().splitlines()[-1]
  return "after a row of " + last.split('"mode": "')[1].split('"')[0]


def write_pairs(path, rng):
  """Short preference pairs of random words."""
  words = "the a one red old cat dog sea sees likes finds far near and then".split()

  def text(most):
    return " ".join(rng.choices(words, k=rng.randint(1, most)))

  with path.open("w") as out:
    for i in range(_PAIRS):
      pair = {"prompt": f"{i} {text(6)}", "chosen": text(9), "rejected": f"no {text(9)}"}
      out.write(json.dumps(pair) + "\n")


def prepare(source, out):
  """Starts the preparation of `source` as a dataset in `out`."""
  line = [sys.executable, "-m", "simpo_jax.prepare", f"--source={source}", f"--out={out}"]
  line += ["--name=pairs", "--workers=2", "--eval_fraction=0.1"]
  with open(out.parent / f"{out.name}.log", "a") as log:
    return subprocess.Popen(line, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)


def tree(folder):
  """The SHA-256 of every file."""
  files = sorted(p for p in folder.rglob("*") if p.is_file())
  return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).digest() for p in files}


def prepare_in_chaos(folder, kills, rng):
  """The dataset at folder/prepared, made under so many kills; whether it is as one left alone."""
  source, calm, wild = folder / "pairs.jsonl", folder / "prepared_calm", folder / "prepared"
  write_pairs(source, rng)
  started = time.monotonic()
  assert end([prepare(source, calm)]) == [0], f"the undisturbed preparation failed, see {folder}"
  seconds, done = time.monotonic() - started, 0
  while done < kills:
    process = prepare(source, wild)
    time.sleep(rng.uniform(0.2, 1.0) * seconds)
    if process.poll() is None:
      # Only the process that was started: its workers must end by themselves.
      process.send_signal(signal.SIGKILL)
      process.wait()
      done += 1
    else:
      shutil.rmtree(wild)
  assert end([prepare(source, wild)]) == [0], f"the last preparation failed, see {folder}"
  return tree(calm) == tree(wild)


def chaos(folder, kills, processes, seed):
  """Returns (what was being done at each kill, the names of what differs in the end)."""
  rng = random.Random(seed)
  cache = folder / "cache"
  calm, wild = folder / "calm", folder / "wild"
  moments = ["preparing"] * max(1, kills // 6)
  differs = [] if prepare_in_chaos(folder, len(moments), rng) else ["prepared"]
  codes = end(start(calm, processes, kills, cache), 3600)
  assert codes == [0] * processes, f"the undisturbed run ended with {codes}, see {folder}"
  times = [launch["seconds"] for launch in record(calm)["timings"]["launches"]]
  while len(moments) < kills:
    running = start(wild, processes, kills, cache)
    what = kill_once(wild, running, rng, statistics.median(times))
    if what is None:
      codes = end(running)
      raise AssertionError(f"the run ended by itself ({codes}) before kill {len(moments) + 1}")
    moments.append(what)
    print(f"kill {len(moments)}: {what}, {written(wild)} rows", flush=True)
  codes = end(start(wild, processes, kills, cache), 3600)
  assert codes == [0] * processes, f"the last start ended with {codes}, see {folder}"
  return moments, differs + differing(outcome(wild), outcome(calm))


def main(argv):
  by = argparse.ArgumentParser(description=__doc__)
  by.add_argument("--kills", type=int, default=30)
  by.add_argument("--processes", type=int, default=1)
  by.add_argument("--seed", type=int, default=0)
  by.add_argument("--folder", type=pathlib.Path)
  options = by.parse_args(argv)
  started = time.monotonic()
  with tempfile.TemporaryDirectory() as temporary:
    folder = options.folder or pathlib.Path(temporary)
    folder.mkdir(parents=True, exist_ok=True)
    moments, differs = chaos(folder, options.kills, options.processes, options.seed)
    resumes = len(record(folder / "wild")["resumes"])
  counts = ", ".join(f"{n} {what}" for what, n in collections.Counter(moments).items())
  print(f"{options.kills} kills of {options.processes} process(es), seed {options.seed}: {counts}")
  print(f"{resumes} resumes, {time.monotonic() - started:.0f} s")
  print(f"differs: {', '.join(differs)}" if differs else "the same, bit for bit")
  return bool(differs)


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
