"""Every worker of a Cloud TPU VM, over `gcloud compute tpus tpu-vm ssh --worker=all`.

  python launch/tpu_vm.py my-v5p-32 --zone=us-east5-a -- --config=configs/m11.py \\
    --workdir=runs/pod

On each worker it goes to --repo-dir and runs the line there; JAX finds the other workers itself.
Install once before, with the same gcloud command and
  --command='git clone URL simpo_jax && cd simpo_jax && python3 -m venv .venv &&
             .venv/bin/pip install -e ".[tpu]"'

Worker 2's lines begin with `[2] `, and also go to launch_logs/ in its --repo-dir.

How a run ends early. ssh sends no signals, so each worker watches its ssh connection's input,
which this launcher holds open. When the input ends the worker sends SIGTERM to the run, and
SIGKILL --grace seconds later. It ends on the first SIGINT or SIGTERM here (output and exit code
still arrive), when this launcher or gcloud dies, and when the connection breaks: nothing is left
running. A second signal drops the connections. A worker never runs one attempt twice, although
gcloud repeats a command whose connection broke. gcloud cannot ask for a passphrase: use ssh-agent.

The exit code is gcloud's: of the first worker in order that failed, 255 for a broken connection.
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
  main_line,
  parse,
  parser,
  passing_signals,
  start,
  whole,
  with_restarts,
)

_PAUSE_SECONDS = 10  # between attempts: for the TPUs of the last one to be free again

_SCRIPT = """\
cd {folder} || exit 2
mkdir -p launch_logs
log=launch_logs/{attempt}.log
if ! (set -o noclobber && : > "$log") 2> /dev/null; then
  echo "{attempt} was run here before; its connection broke" >&2
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
  """Returns the bash script of one attempt on one worker; it ends with the line's exit code."""
  variables = [("PYTHONUNBUFFERED", "1"), *env]
  return _SCRIPT.format(
    folder=shlex.quote(folder.removeprefix("~/")),  # ssh begins at home
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
  """Runs on all workers, again after failures; returns the exit code. Raises Mistake."""
  by = parser(__doc__, ".venv/bin/python", 3)
  by.add_argument("name", metavar="NAME", help="the TPU VM")
  by.add_argument("--zone", required=True)
  by.add_argument("--project")
  by.add_argument(
    "--repo-dir",
    default="simpo_jax",
    metavar="DIR",
    help="this repository on the workers, from their home folder (default simpo_jax)",
  )
  by.add_argument(
    "--grace", type=whole, default=120, metavar="SECONDS", help="SIGTERM to SIGKILL (default 120)"
  )
  add_env(by)
  options, flags = parse(by, argv)
  stamp = time.strftime("%Y%m%d-%H%M%S")
  line = main_line(options.python, flags)

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
    # A session of its own: a ^C in the terminal must not reach ssh, which would hang up.
    running[:] = [start(command(number), stdin=subprocess.PIPE, start_new_session=True)]
    if received:
      stop(received[-1])
    code = running[0].wait()
    running.clear()
    return exit_code(code)

  with passing_signals(stop) as received:
    return with_restarts(attempt, options.max_restarts, received)


if __name__ == "__main__":
  entry(main)
