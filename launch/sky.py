"""Launches a SkyPilot task on any cloud, as a managed job or with `sky launch` on --cluster.

  python launch/sky.py --accelerators=H100:8 --nodes=2 --mount=/outputs=gs://my-bucket \\
    -- --config=configs/m11.py --workdir=/outputs/mine

SkyPilot copies the current directory to every node, runs --setup there, and then the command.
A managed job recovers from preemptions by itself. --max-restarts applies to failures of the run
with any exit code: SkyPilot cannot exclude one, so user errors (2) are retried too. A node's disk
is deleted with the node: put the workdir on a --mount. On TPUs JAX finds the other hosts itself.

This script follows the log and returns SkyPilot's exit code: 0 if the job succeeded, 100 if it
failed. A signal stops following the log; it does not stop the job (`sky jobs cancel`, `sky down`).
"""

import os
import pathlib
import re
import shlex
import sys
import tempfile
from collections.abc import Sequence

from common import (
  COORDINATOR_PORT,
  UserError,
  add_env,
  entry,
  main_command,
  parse,
  parser,
  positive_int,
  run,
  to_yaml,
)

_CLUSTER_ENV = f"""\
export JAX_COORDINATOR_ADDRESS="${{SKYPILOT_NODE_IPS%%$'\\n'*}}:{COORDINATOR_PORT}"
export JAX_NUM_PROCESSES="$SKYPILOT_NUM_NODES"
export JAX_PROCESS_ID="$SKYPILOT_NODE_RANK"
"""


def task(
  line: Sequence[str],
  name: str,
  accelerators: str,
  nodes: int,
  setup: str,
  restarts: int,
  env: dict[str, str],
  mounts: dict[str, dict[str, str]],
) -> dict:
  """Returns the SkyPilot task as nested dicts."""
  resources: dict = {"accelerators": accelerators}
  if restarts:
    resources["job_recovery"] = {"max_restarts_on_errors": restarts}
  cluster_env = "" if accelerators.startswith("tpu") else _CLUSTER_ENV
  return {
    "name": name,
    "workdir": ".",
    "num_nodes": nodes,
    "resources": resources,
    "envs": {"PYTHONUNBUFFERED": "1", **env},
    **({"file_mounts": mounts} if mounts else {}),
    "setup": f"{setup}\n",
    # exec: the run receives SkyPilot's signals, and SkyPilot the run's exit code.
    "run": f"{cluster_env}exec {shlex.join(line)}\n",
  }


def main(argv: Sequence[str]) -> int:
  """Launches the task; returns sky's exit code. Raises UserError."""
  args = parser(__doc__, ".venv/bin/python", 3)
  args.add_argument("--accelerators", required=True, metavar="TYPE:COUNT", help="per node")
  args.add_argument("--nodes", type=positive_int, default=1, metavar="N", help="default 1")
  args.add_argument("--name", default="simpo", help="job name (default simpo)")
  args.add_argument("--cluster", help="launch on this cluster instead of as a managed job")
  args.add_argument(
    "--setup", metavar="SHELL", help="default: install this package into .venv, for the accelerator"
  )
  args.add_argument(
    "--mount",
    type=lambda text: text.partition("=")[::2],
    action="append",
    default=[],
    metavar="PATH=URL",
    help="mount a bucket, such as /outputs=gs://my-bucket; repeatable",
  )
  add_env(args)
  options, flags = parse(args, argv)
  if options.cluster and options.max_restarts:
    raise UserError("only managed jobs are restarted; say --max-restarts=0 with --cluster")
  for path, url in options.mount:
    if not path.startswith("/") or not re.match(r"\w+://.", url):
      raise UserError(f"--mount={path}={url}: expected PATH=URL, such as /outputs=gs://my-bucket")
  extra = "tpu" if options.accelerators.startswith("tpu") else "cuda12"
  install = f"python3 -m venv .venv && .venv/bin/pip install -e '.[{extra}]'"
  text = to_yaml(
    task(
      main_command(options.python, flags),
      options.name,
      options.accelerators,
      options.nodes,
      options.setup or install,
      options.max_restarts,
      dict(options.env),
      {path: {"source": url, "mode": "MOUNT"} for path, url in options.mount},
    )
  )
  where = ["launch", f"--cluster={options.cluster}"] if options.cluster else ["jobs", "launch"]
  if options.dry_run:
    print(text, end="", flush=True)
    print(f"# TASK.yaml for: {shlex.join(['sky', *where, '--yes', 'TASK.yaml'])}", file=sys.stderr)
    return 0
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "task.yaml"
    file.touch(mode=0o600)  # --env may hold secrets
    file.write_text(text)
    return run(["sky", *where, "--yes", os.fspath(file)])[0]


if __name__ == "__main__":
  entry(main)
