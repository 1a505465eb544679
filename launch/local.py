"""Several processes on this machine, for trying out and testing runs of many hosts.

  python launch/local.py --processes=4 --devices=4 -- --config=configs/m11.py --workdir=runs/four

--devices=M gives every process M CPU devices. Without it a single process keeps the machine's
own devices; several get one CPU device each, since they cannot share accelerators.

Lines of process 2 begin with `[2] `. SIGINT and SIGTERM are passed on, each time they come. When
a process fails the others notice and end; what has not ended after --grace is killed. The exit
code is 0 if all ended with 0, else that of the first that failed (128 + n: ended by signal n; 75:
stopped by a signal and saved). With --max-restarts=N what fails is started again, and goes on.
If the launcher is killed, Linux kills the processes.
"""

import ctypes
import os
import selectors
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import IO

from common import (
  RESUMABLE,
  Mistake,
  entry,
  exit_code,
  main_line,
  parse,
  parser,
  passing_signals,
  positive,
  say,
  start,
  whole,
  with_restarts,
)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1
_NOISE = b"[Gloo] Rank "  # a line per connection, from the library that carries CPU collectives


def additions(
  index: int, count: int, address: str, devices: int | None, base: Mapping[str, str]
) -> dict[str, str]:
  """Returns what process `index` of `count` has in its environment beyond `base`."""
  out = {
    "JAX_COORDINATOR_ADDRESS": address,
    "JAX_NUM_PROCESSES": str(count),
    "JAX_PROCESS_ID": str(index),
    "PYTHONUNBUFFERED": "1",  # a pipe would hold lines back until 8 KiB of them
  }
  if devices or count > 1:
    out["JAX_PLATFORMS"] = base.get("JAX_PLATFORMS") or "cpu"
  if devices:
    flag = f"--xla_force_host_platform_device_count={devices}"
    out["XLA_FLAGS"] = f"{base.get('XLA_FLAGS', '')} {flag}".strip()
  return out


def dry_run(line: Sequence[str], count: int, devices: int | None, base: Mapping[str, str]) -> str:
  """Returns the commands as a shell would run them; $PORT is free, and chosen at the start."""
  rows = []
  for index in range(count):
    extra = additions(index, count, "127.0.0.1:PORT", devices, base)
    words = [f"{k}={shlex.quote(v)}" for k, v in extra.items()]
    rows.append(f"{' '.join(words)} {shlex.join(line)} &".replace(":PORT ", ':"$PORT" ', 1))
  return "\n".join([*rows, "wait"])


def main(argv: Sequence[str]) -> int:
  """Runs the processes; returns the launcher's exit code. Raises Mistake."""
  by = parser(__doc__, sys.executable, 0)
  by.add_argument("--processes", type=positive, default=1, metavar="N", help="default 1")
  by.add_argument("--devices", type=positive, metavar="M", help="CPU devices of each process")
  by.add_argument(
    "--grace",
    type=whole,
    default=30,
    metavar="SECONDS",
    help="how long the rest may take to end after a failure or a signal (default 30)",
  )
  options, flags = parse(by, argv)
  line = main_line(options.python, flags)
  if options.dry_run:
    print(dry_run(line, options.processes, options.devices, os.environ))
    return 0

  processes: list[subprocess.Popen] = []

  def attempt(_: int) -> int:
    address = f"127.0.0.1:{_free_port()}"  # the last attempt's may still be taken
    processes[:] = []
    _start_all(
      processes,
      line,
      [
        additions(i, options.processes, address, options.devices, os.environ)
        for i in range(options.processes)
      ],
    )
    try:
      return _watch(processes, options.grace, received)
    finally:
      _kill(processes)

  with passing_signals(lambda s: [p.send_signal(s) for p in processes]) as received:
    return with_restarts(attempt, options.max_restarts, received)


def _start_all(processes: list, line: Sequence[str], extras: Sequence[dict]) -> None:
  # A single process keeps the terminal, for its progress bars. Several are in sessions of their
  # own, so that a ^C of the terminal reaches them once, from the launcher.
  several = len(extras) > 1
  pipe = subprocess.PIPE if several else None
  parent = os.getpid()
  libc = ctypes.CDLL(None) if sys.platform == "linux" else None

  def in_child() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    if libc is not None:
      libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the launcher died before the line above
      os._exit(1)

  # A signal now would reach only the processes that exist already.
  signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
  try:
    for extra in extras:
      processes.append(
        start(
          line,
          env={**os.environ, **extra},
          stdin=subprocess.DEVNULL,
          stdout=pipe,
          stderr=pipe,
          start_new_session=True,
          preexec_fn=in_child,
        )
      )
  except Mistake:
    _kill(processes)
    raise
  finally:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _watch(processes: Sequence[subprocess.Popen], grace: float, received: Sequence[int]) -> int:
  """Passes the output on until all have ended; returns the exit code of them together."""
  selector = selectors.DefaultSelector()
  for index, process in enumerate(processes):
    for pipe, to in ((process.stdout, sys.stdout), (process.stderr, sys.stderr)):
      if pipe is not None:
        lines = _Lines(f"[{index}] ".encode(), pipe, to.buffer)
        selector.register(pipe, selectors.EVENT_READ, lines)
  failed, deadline = None, None
  while any(p.poll() is None for p in processes):
    for key, _ in selector.select(timeout=0.1):
      _forward(selector, key)
    if failed is None:
      failed = next((i for i, p in enumerate(processes) if p.poll()), None)
      if failed is not None and len(processes) > 1:
        say(f"process {failed} {_outcome(processes[failed])}; the others have {grace:g} s to end")
    if deadline is None and (failed is not None or received):
      deadline = time.monotonic() + grace
    if deadline is not None and time.monotonic() > deadline:
      left = _kill(processes)
      say(f"killed what had not ended {grace:g} s later: process {', '.join(map(str, left))}")
  # What a process wrote before its end is in its pipe by now.
  while keys := selector.select(timeout=0):
    for key, _ in keys:
      _forward(selector, key)
  if failed is None:
    failed = next((i for i, p in enumerate(processes) if p.returncode), None)
  if failed is None:
    return 0
  say(f"process {failed} {_outcome(processes[failed])}")
  return exit_code(processes[failed].returncode)


class _Lines:
  """Writes a pipe's whole lines behind a prefix, however they arrive."""

  def __init__(self, prefix: bytes, pipe: IO[bytes], to: IO[bytes]):
    self.prefix, self.pipe, self.to, self.rest = prefix, pipe, to, b""

  def write(self, chunk: bytes) -> None:
    *lines, self.rest = (self.rest + chunk).split(b"\n")
    told = (line for line in lines if not line.startswith(_NOISE))
    self.to.write(b"".join(self.prefix + line + b"\n" for line in told))
    self.to.flush()


def _forward(selector: selectors.BaseSelector, key: selectors.SelectorKey) -> None:
  lines: _Lines = key.data
  chunk = os.read(key.fd, 1 << 16)
  lines.write(chunk)
  if not chunk:
    if lines.rest:
      lines.write(b"\n")
    selector.unregister(key.fileobj)
    lines.pipe.close()


def _kill(processes: Sequence[subprocess.Popen]) -> list[int]:
  """Kills what has not ended, with all that it started; returns which that was."""
  left = [i for i, p in enumerate(processes) if p.poll() is None]
  for i in left:
    os.killpg(processes[i].pid, signal.SIGKILL)
  for i in left:
    processes[i].wait()
  return left


def _outcome(process: subprocess.Popen) -> str:
  code = exit_code(process.returncode)
  if process.returncode < 0:
    return f"was ended by {signal.Signals(-process.returncode).name} (exit code {code})"
  if code == RESUMABLE:
    return f"ended with exit code {code}; the same command goes on"
  return f"failed with exit code {code}"


def _free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


if __name__ == "__main__":
  entry(main)
