"""Kills a run at random moments, again and again, and compares what comes of it in the end.

  python tests/chaos.py --kills=30 --processes=1 --seed=0 [--folder=DIR]

One run of the embedded model is left alone. Another is killed (SIGKILL; of several processes,
one) and started again with the same command until it is done. Both must have left the same: the
arrays of the last checkpoint, the metrics without times, every sample, and the launches. A kill
comes when so many rows were written since the start, and a random part of a launch later; one
in ten comes while the run starts. Exit code 0 if all is the same.
"""

import argparse
import collections
import os
import pathlib
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time

from hosts import ROOT, flags
from outcome import outcome, record

_ROWS = 8  # at most, between a start and its kill
_START_SECONDS = 6.0  # of a start that is killed before its first row
_LIMIT = 600  # seconds of a start without a row


def settings(kills):
  """A run that is long enough to be killed so often, with some 1.75 rows a step."""
  return {
    "train.steps": 12 * kills + 6,
    "train.batch_size": 6,
    "data.max_length": 128,
    "data.max_prompt_length": 64,
    "data.row_length": 256,
    "data.embedded_pairs": 40,
    "data.eval_fraction": 0.1,
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
      line = [sys.executable, "-m", "simpo_jax.main", *flags(folder, settings(kills))]
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
  end(processes)
  if early:
    return "starting"
  if list((folder / "checkpoints").glob("*tmp*")):
    return "saving"
  last = (folder / "metrics.jsonl").read_text().splitlines()[-1]
  return "after a row of " + last.split('"mode": "')[1].split('"')[0]


def chaos(folder, kills, processes, seed):
  """Returns (what was being done at each kill, the names of what differs in the end)."""
  rng = random.Random(seed)
  cache = folder / "cache"
  calm, wild = folder / "calm", folder / "wild"
  codes = end(start(calm, processes, kills, cache), 3600)
  assert codes == [0] * processes, f"the undisturbed run ended with {codes}, see {folder}"
  times = [launch["seconds"] for launch in record(calm)["timings"]["launches"]]
  moments = []
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
  expected, found = outcome(calm), outcome(wild)
  return moments, [name for name in expected if expected[name] != found[name]]


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
