"""Submits a Slurm job with sbatch: one task per node.

  python launch/slurm.py --nodes=4 --sbatch=--gpus-per-node=8 --sbatch=--exclusive \\
    --sbatch=--time=24:00:00 -- --config=configs/m11.py --workdir=/shared/runs/mine

--sbatch=ARGUMENT passes any other argument to sbatch and overrides what this script sets. The
repository, the interpreter and the workdir must have the same path on all nodes (a shared file
system).

Before the time limit the run gets SIGTERM, saves a checkpoint and exits with code 75. After every
exit code except 0 and 2 the job is requeued (scontrol requeue, up to --max-restarts times), and
the run resumes. `scancel` ends it permanently.
--wait waits for the job and returns its exit code, the highest of all tasks; a signal then ends
the waiting, not the job. --dry-run prints the batch script and the sbatch command.
"""

import os
import shlex
import sys
from collections.abc import Sequence

from common import (
  USER_ERROR,
  add_env,
  entry,
  main_command,
  nonnegative_int,
  parse,
  parser,
  positive_int,
  run,
)

# The port is derived from the job id, since two jobs may share a node. kill-on-bad-exit: no task
# may hang after another failed. cpu-bind: Slurm would otherwise bind a task to one core.
_SCRIPT = """\
#!/bin/bash
#SBATCH --job-name=simpo
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node=1
#SBATCH --signal=TERM@{notice}
#SBATCH --{requeue}
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log

cd {folder} || exit {user_error}
{exports}
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
export JAX_COORDINATOR_ADDRESS="${{hosts%%$'\\n'*}}:$((20000 + SLURM_JOB_ID % 10000))"
export JAX_NUM_PROCESSES="$SLURM_NTASKS"
# shellcheck disable=SC2016  # each task has a number of its own
srun --kill-on-bad-exit=1 --cpu-bind=none \\
  bash -c 'JAX_PROCESS_ID="$SLURM_PROCID" exec "$@"' task \\
  {line}
code=$?
if ((code != 0 && code != {user_error} && ${{SLURM_RESTART_COUNT:-0}} < {restarts})); then
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
  """Returns the batch script, which exits with the highest exit code of its tasks.

  Args:
    notice: seconds between SIGTERM and the time limit.
  """
  variables = [("PYTHONUNBUFFERED", "1"), *env]
  return _SCRIPT.format(
    nodes=nodes,
    folder=shlex.quote(folder),
    exports="\n".join(f"export {k}={shlex.quote(v)}" for k, v in variables),
    notice=notice,
    requeue="requeue" if restarts else "no-requeue",
    restarts=restarts,
    user_error=USER_ERROR,
    line=shlex.join(line),
  )


def main(argv: Sequence[str]) -> int:
  """Submits the job; returns sbatch's exit code. Raises UserError."""
  args = parser(__doc__, ".venv/bin/python", 3)
  args.add_argument("--nodes", type=positive_int, default=1, metavar="N", help="default 1")
  args.add_argument(
    "--repo-dir",
    default=os.getcwd(),
    metavar="DIR",
    help="working directory on every node (default: the current one)",
  )
  args.add_argument(
    "--notice",
    type=nonnegative_int,
    default=120,
    metavar="SECONDS",
    help="send SIGTERM this long before the time limit (default 120)",
  )
  args.add_argument(
    "--sbatch",
    action="append",
    default=[],
    metavar="ARGUMENT",
    help="extra sbatch argument; repeatable",
  )
  args.add_argument("--wait", action="store_true", help="wait for the job; return its exit code")
  add_env(args)
  options, flags = parse(args, argv)
  text = script(
    main_command(options.python, flags),
    options.nodes,
    options.repo_dir,
    options.env,
    options.notice,
    options.max_restarts,
  )
  command = ["sbatch", *(["--wait"] if options.wait else []), *options.sbatch]
  if options.dry_run:
    print(text, end="", flush=True)
    print(f"# stdin of: {shlex.join(command)}", file=sys.stderr)
    return 0
  return run(command, text)[0]


if __name__ == "__main__":
  entry(main)
