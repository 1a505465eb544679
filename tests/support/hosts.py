"""Groups of real processes on this machine: the hosts of one run."""

import os
import socket
import subprocess
import sys
import time
from typing import NamedTuple

from support.folders import ROOT, TESTS

# Processes that are compared with each other alone compile in two thirds of the time. It is
# machine code that is optimized less: XLA's own program, its buffers and exchanges are the same.
QUICK = "--xla_backend_optimization_level=0"
# A program that compiles in seconds, for drills that end it by force.
TINY = {
  "data.max_length": 64,
  "data.max_prompt_length": 32,
  "data.row_length": 128,
  "data.embedded_pairs": 24,
  "train.batch_size": 2,
  "generate.count": 4,
  "generate.max_new_tokens": 8,
  "generate.page_size": 16,
  "evaluate.at_end": False,
}


class Ended(NamedTuple):
  """How one process of a group ended."""

  code: int
  err: str
  at: float  # time.time()


def flags(workdir, settings, config="configs/m11.py"):
  """The command line of `simpo_jax.main`."""
  return [
    f"--config={ROOT / config}",
    f"--workdir={workdir}",
    *(f"--config.{name}={value}" for name, value in settings.items()),
  ]


def run_group(folder, commands, devices=1, cwds=None, timeout=240):
  """Runs one process per command (arguments of python), and returns how each ended.

  A group that does not end in time is killed, and fails the test.
  """
  with socket.create_server(("127.0.0.1", 0)) as free:
    port = free.getsockname()[1]
  processes, logs = [], []
  for index, command in enumerate(commands):
    env = dict(
      os.environ,
      JAX_PLATFORMS="cpu",
      XLA_FLAGS=f"--xla_force_host_platform_device_count={devices} {QUICK}",
      JAX_COORDINATOR_ADDRESS=f"127.0.0.1:{port}",
      JAX_NUM_PROCESSES=str(len(commands)),
      JAX_PROCESS_ID=str(index),
      PYTHONPATH=os.pathsep.join([str(ROOT), str(TESTS), *filter(None, sys.path)]),
    )
    logs.append(folder / f"host_{index}.err")
    with open(logs[-1], "w") as log:
      processes.append(
        subprocess.Popen(
          [sys.executable, *command],
          env=env,
          cwd=cwds[index] if cwds else folder,
          stdout=log,
          stderr=subprocess.STDOUT,
        )
      )
  ends: dict[int, float] = {}
  deadline = time.time() + timeout
  while len(ends) < len(processes) and time.time() < deadline:
    for index, process in enumerate(processes):
      if index not in ends and process.poll() is not None:
        ends[index] = time.time()
    time.sleep(0.02)
  for process in processes:
    process.kill()
    process.wait()
  texts = [log.read_text(errors="replace") for log in logs]
  assert len(ends) == len(processes), "\n\n".join(t[-3000:] for t in texts)
  return [Ended(p.returncode, texts[i], ends[i]) for i, p in enumerate(processes)]


def wait_for(condition, timeout=15):
  """Until the condition, a function, is true; fails after so many seconds."""
  end = time.monotonic() + timeout
  while not condition():
    assert time.monotonic() < end, "it did not happen"
    time.sleep(0.02)
