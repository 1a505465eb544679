"""Launches a run on every worker of a Cloud TPU VM, over `gcloud compute tpus tpu-vm ssh`.

  python launch/tpu_vm.py my-v5p-32 --zone=us-east5-a -- --config=configs/m11.py \\
    --workdir=runs/pod

Runs the command in --repo-dir on each worker; JAX finds the other workers itself. Install the
package there first, with `gcloud compute tpus tpu-vm ssh NAME --worker=all` and
  --command='git clone URL simpo_jax && cd simpo_jax && python3 -m venv .venv &&
             .venv/bin/pip install -e ".[tpu]"'

Output lines of worker 2 begin with `[2] `, and are also logged in launch_logs/ in its --repo-dir.

Stopping a run: ssh does not forward signals, so each worker watches the stdin of its ssh
connection, which this launcher keeps open. At its end the worker sends SIGTERM to the run, and
SIGKILL --grace seconds later. It ends on the first SIGINT or SIGTERM here (output and exit code
still arrive), if this launcher or gcloud dies, or if the connection breaks, so that no process is
left running. A second signal closes the connections. gcloud repeats a command whose connection
broke, but a worker never runs the same attempt twice. gcloud cannot prompt for a passphrase: use
ssh-agent.

The exit code is gcloud's: that of the lowest-numbered worker that failed, or 255 for a broken
connection.
"""

import contextlib
import os
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence

from common import (
  RESUMABLE,
  add_env,
  entry,
  exit_code,
  forward_signals,
  main_command,
  nonnegative_int,
  parse,
  parser,
  start,
  with_restarts,
)

_PAUSE_SECONDS = 10  # between attempts, until the last one has released the TPUs

_SCRIPT = """\
cd {folder} || exit 2
mkdir -p launch_logs
log=launch_logs/{attempt}.log
if ! (set -o noclobber && : > "$log") 2> /dev/null; then
  echo "{attempt} already ran here; its connection broke" >&2
  exit {resumable}
fi
exec 3<&0
exec > >(tee -ap "$log" | sed -u "s/^/[${{HOSTNAME##*-w-}}] /") 2>&1
output=$!
{exports}
{line} < /dev/null 3<&- &
main=$!
(
  while read -r -u 3 _; do :; done
  kill -TERM "$main"
  sleep {grace}
  kill -KILL "$main"
) > /dev/null 2>&1 &
watch=$!
wait "$main"
code=$?
kill "$watch"
exec > /dev/null 2>&1
wait "$output"
exit "$code"
"""


def remote_script(
  line: Sequence[str], folder: str, env: Sequence[tuple[str, str]], grace: int, attempt: str
) -> str:
  """Returns the bash script of one attempt on one worker, which exits with the run's code."""
  variables = [("PYTHONUNBUFFERED", "1"), *env]
  return _SCRIPT.format(
    folder=shlex.quote(folder.removeprefix("~/")),  # ssh starts in the home directory
    attempt=attempt,
    resumable=RESUMABLE,
    exports="\n".join(f"export {k}={shlex.quote(v)}" for k, v in variables),
    line=shlex.join(line),
    grace=grace,
  )


def gcloud(name: str, zone: str, project: str | None, script: str) -> list[str]:
  """Returns the command that runs `script` with bash on every worker."""
  return [
    *("gcloud", "compute", "tpus", "tpu-vm", "ssh", name, "--worker=all", "--quiet"),
    f"--zone={zone}",
    *([f"--project={project}"] if project else []),
    "--ssh-flag=-oServerAliveInterval=30",
    f"--command=bash -c {shlex.quote(script)}",
  ]


def main(argv: Sequence[str]) -> int:
  """Runs on all workers, with restarts; returns the exit code. Raises UserError."""
  args = parser(__doc__, ".venv/bin/python", 3)
  args.add_argument("name", metavar="NAME", help="name of the TPU VM")
  args.add_argument("--zone", required=True)
  args.add_argument("--project")
  args.add_argument(
    "--repo-dir",
    default="simpo_jax",
    metavar="DIR",
    help="this repository on the workers, relative to the home directory (default simpo_jax)",
  )
  args.add_argument(
    "--grace",
    type=nonnegative_int,
    default=120,
    metavar="SECONDS",
    help="time from SIGTERM to SIGKILL (default 120)",
  )
  add_env(args)
  options, flags = parse(args, argv)
  stamp = time.strftime("%Y%m%d-%H%M%S")
  line = main_command(options.python, flags)

  def command(number: int) -> list[str]:
    attempt = f"{stamp}-{number}"
    script = remote_script(line, options.repo_dir, options.env, options.grace, attempt)
    return gcloud(options.name, options.zone, options.project, script)

  if options.dry_run:
    print(shlex.join(command(0)))
    return 0

  running: list[subprocess.Popen] = []

  def stop(_: int) -> None:
    for child in running:
      if child.stdin and not child.stdin.closed:
        child.stdin.close()
        continue
      with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)

  def attempt(number: int) -> int:
    if number:
      time.sleep(_PAUSE_SECONDS)
      if received:
        return RESUMABLE
    # A new session: a ^C in the terminal must not reach ssh, which would close the connection.
    running[:] = [start(command(number), stdin=subprocess.PIPE, start_new_session=True)]
    if received:
      stop(received[-1])
    code = running[0].wait()
    running.clear()
    return exit_code(code)

  with forward_signals(stop) as received:
    return with_restarts(attempt, options.max_restarts, received)


if __name__ == "__main__":
  entry(main)
