"""Launches several processes on this machine, to try out and test multi-host runs.

  python launch/local.py --processes=4 --devices=4 -- --config=configs/m11.py --workdir=runs/four

--devices=M gives every process M CPU devices. Without it, a single process uses the machine's
devices, and several processes get one CPU device each, since they cannot share accelerators.

Output lines of process 2 begin with `[2] `. Every SIGINT and SIGTERM is forwarded. When a process
fails, the others notice and exit; those still running after --grace are killed. The exit code is 0
if all processes exit with 0, else that of the first that failed (128 + n: killed by signal n; 75:
stopped by a signal after saving). With --max-restarts=N a failed run is restarted and resumes.
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
  UserError,
  entry,
  exit_code,
  forward_signals,
  main_command,
  nonnegative_int,
  parse,
  parser,
  positive_int,
  say,
  start,
  with_restarts,
)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1
_NOISE = b"[Gloo] Rank "  # printed per connection by Gloo, which runs the CPU collectives


def extra_env(
  index: int, count: int, address: str, devices: int | None, base: Mapping[str, str]
) -> dict[str, str]:
  """Returns the environment variables of process `index` of `count` to add to `base`."""
  out = {
    "JAX_COORDINATOR_ADDRESS": address,
    "JAX_NUM_PROCESSES": str(count),
    "JAX_PROCESS_ID": str(index),
    "PYTHONUNBUFFERED": "1",  # Python would buffer 8 KiB for a pipe
  }
  if devices or count > 1:
    out["JAX_PLATFORMS"] = base.get("JAX_PLATFORMS") or "cpu"
  if devices:
    flag = f"--xla_force_host_platform_device_count={devices}"
    out["XLA_FLAGS"] = f"{base.get('XLA_FLAGS', '')} {flag}".strip()
  return out


def dry_run(line: Sequence[str], count: int, devices: int | None, base: Mapping[str, str]) -> str:
  """Returns the commands as a shell script; $PORT stands for a free port, chosen at the start."""
  rows = []
  for index in range(count):
    extra = extra_env(index, count, "127.0.0.1:PORT", devices, base)
    words = [f"{k}={shlex.quote(v)}" for k, v in extra.items()]
    rows.append(f"{' '.join(words)} {shlex.join(line)} &".replace(":PORT ", ':"$PORT" ', 1))
  return "\n".join([*rows, "wait"])


def main(argv: Sequence[str]) -> int:
  """Runs the processes; returns the launcher's exit code. Raises UserError."""
  args = parser(__doc__, sys.executable, 0)
  args.add_argument("--processes", type=positive_int, default=1, metavar="N", help="default 1")
  args.add_argument("--devices", type=positive_int, metavar="M", help="CPU devices of each process")
  args.add_argument(
    "--grace",
    type=nonnegative_int,
    default=30,
    metavar="SECONDS",
    help="time for the remaining processes to exit after a failure or a signal (default 30)",
  )
  options, flags = parse(args, argv)
  line = main_command(options.python, flags)
  if options.dry_run:
    print(dry_run(line, options.processes, options.devices, os.environ))
    return 0

  processes: list[subprocess.Popen] = []

  def attempt(_: int) -> int:
    address = f"127.0.0.1:{_free_port()}"  # the last attempt's port may still be in use
    processes[:] = []
    _start_all(
      processes,
      line,
      [
        extra_env(i, options.processes, address, options.devices, os.environ)
        for i in range(options.processes)
      ],
    )
    try:
      return _watch(processes, options.grace, received)
    finally:
      _kill(processes)

  with forward_signals(lambda s: [p.send_signal(s) for p in processes]) as received:
    return with_restarts(attempt, options.max_restarts, received)


def _start_all(processes: list, line: Sequence[str], extras: Sequence[dict]) -> None:
  # A single process keeps the terminal, for its progress bars. Every process is in a new session,
  # so that a ^C in the terminal reaches it only once, through the launcher.
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

  # A signal during the loop would reach only the processes started so far.
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
  except UserError:
    _kill(processes)
    raise
  finally:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _watch(processes: Sequence[subprocess.Popen], grace: float, received: Sequence[int]) -> int:
  """Forwards the output until all processes have ended; returns the combined exit code."""
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
      say(f"killed after {grace:g} s: process {', '.join(map(str, left))}")
  # By now the pipes contain everything that the processes wrote.
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
  """Copies a pipe line by line, each with a prefix; an incomplete line waits for its end."""

  def __init__(self, prefix: bytes, pipe: IO[bytes], to: IO[bytes]):
    self.prefix, self.pipe, self.to, self.rest = prefix, pipe, to, b""

  def write(self, chunk: bytes) -> None:
    *lines, self.rest = (self.rest + chunk).split(b"\n")
    shown = (line for line in lines if not line.startswith(_NOISE))
    self.to.write(b"".join(self.prefix + line + b"\n" for line in shown))
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
  """Kills the running processes with their children; returns their indices."""
  left = [i for i, p in enumerate(processes) if p.poll() is None]
  for i in left:
    os.killpg(processes[i].pid, signal.SIGKILL)
  for i in left:
    processes[i].wait()
  return left


def _outcome(process: subprocess.Popen) -> str:
  code = exit_code(process.returncode)
  if process.returncode < 0:
    return f"was killed by {signal.Signals(-process.returncode).name} (exit code {code})"
  if code == RESUMABLE:
    return f"ended with exit code {code}; the same command resumes the run"
  return f"failed with exit code {code}"


def _free_port() -> int:
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    return s.getsockname()[1]


if __name__ == "__main__":
  entry(main)
