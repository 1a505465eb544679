"""A Slurm job: one task per node, submitted with sbatch.

  python launch/slurm.py --nodes=4 --sbatch=--gpus-per-node=8 --sbatch=--exclusive \\
    --sbatch=--time=24:00:00 -- --config=configs/m11.py --workdir=/shared/runs/mine

--sbatch=ARGUMENT hands anything else to sbatch; it wins over what this script sets. The folder,
the interpreter and the workdir must be the same on all nodes (a shared file system).

Before the time limit the run gets SIGTERM, to save and end (exit code 75). It is requeued (scontrol
requeue, up to --max-restarts times) after every exit code but 0 and 2, and goes on; `scancel` ends
it for good.
--wait waits for the job and returns its exit code, the highest of all tasks; a signal then ends
the waiting, not the job. --dry-run prints the script, and the command that reads it.
"""

import os
import shlex
import sys
from collections.abc import Sequence

from common import MISTAKE, add_env, entry, main_line, parse, parser, positive, run, whole

# The port comes from the job's number, since two jobs may share a node. kill-on-bad-exit: no task
# may hang when another has failed. cpu-bind: Slurm else ties a task to one core.
_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=simpo
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@{notice}
#SBATCH --{requeue}
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

cd {folder} || exit {mistake}
{exports}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export JAX_COORDINATOR_ADDRESS="${{hosts%%$'\\n'*}}:$((20000 + SLURM_JOB_ID % 10000))"
export JAX_NUM_PROCESSES="$SLURM_NTASKS"
# shellcheck disable=SC2016  # each task has a number of its own
srun --kill-on-bad-exit=1 --cpu-bind=none \\
  bash -c 'JAX_PROCESS_ID="$SLURM_PROCID" exec "$@"' task \\
  {line}
code=$?
if ((code != 0 && code != {mistake} && ${{SLURM_RESTART_COUNT:-0}} < {restarts})); then
  echo "exit code $code; requeued" >&2
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def script(
  line: Sequence[str],
  nodes: int,
  folder: str,
  env: Sequence[tuple[str, str]],
  notice: int,
  restarts: int,
) -> str:
  """Returns the batch script; it ends with the exit code of the highest of its tasks."""
  variables = [("PYTHONUNBUFFERED", "1"), *env]
  return _SCRIPT.format(
    nodes=nodes,
    folder=shlex.quote(folder),
    exports="\n".join(f"export {k}={shlex.quote(v)}" for k, v in variables),
    notice=notice,
    requeue="requeue" if restarts else "no-requeue",
    restarts=restarts,
    mistake=MISTAKE,
    line=shlex.join(line),
  )


def main(argv: Sequence[str]) -> int:
  """Submits the job; returns sbatch's exit code. Raises Mistake."""
  by = parser(__doc__, ".venv/bin/python", 3)
  by.add_argument("--nodes", type=positive, default=1, metavar="N", help="default 1")
  by.add_argument(
    "--repo-dir",
    default=os.getcwd(),
    metavar="DIR",
    help="working directory on every node (default: here)",
  )
  by.add_argument(
    "--notice",
    type=whole,
    default=120,
    metavar="SECONDS",
    help="SIGTERM comes this long before the time limit (default 120)",
  )
  by.add_argument(
    "--sbatch",
    action="append",
    default=[],
    metavar="ARGUMENT",
    help="extra sbatch argument; repeatable",
  )
  by.add_argument("--wait", action="store_true", help="wait for the job; return its exit code")
  add_env(by)
  options, flags = parse(by, argv)
  text = script(
    main_line(options.python, flags),
    options.nodes,
    options.repo_dir,
    options.env,
    options.notice,
    options.max_restarts,
  )
  command = ["sbatch", *(["--wait"] if options.wait else []), *options.sbatch]
  if options.dry_run:
    print(text, end="", flush=True)
    print(f"# the input of: {shlex.join(command)}", file=sys.stderr)
    return 0
  return run(command, text)[0]


if __name__ == "__main__":
  entry(main)
