"""A SkyPilot task, on any cloud: `sky jobs launch` (managed), or `sky launch` on --cluster.

  python launch/sky.py --accelerators=H100:8 --nodes=2 --mount=/outputs=gs://my-bucket \\
    -- --config=configs/m11.py --workdir=/outputs/mine

SkyPilot copies the folder it is called in and runs --setup there, then the line, on every node.
A managed job follows preemptions by itself; --max-restarts is for failures of the run, with any
exit code: SkyPilot cannot leave one out, so a mistake (2) is repeated, too. A node's disk ends
with the node: put the workdir on a --mount. On TPUs JAX finds the hosts itself.

The command follows the log, and its exit code is SkyPilot's: 0 if the job succeeded, 100 if it
failed. A signal ends the following, not the job (`sky jobs cancel`, `sky down`).
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
  Mistake,
  add_env,
  entry,
  main_line,
  parse,
  parser,
  positive,
  run,
  to_yaml,
)

_WHO = f"""\
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
  who = "" if accelerators.startswith("tpu") else _WHO
  return {
    "name": name,
    "workdir": ".",
    "num_nodes": nodes,
    "resources": resources,
    "envs": {"PYTHONUNBUFFERED": "1", **env},
    **({"file_mounts": mounts} if mounts else {}),
    "setup": f"{setup}\n",
    # exec: SkyPilot's signals reach the run, and its exit code SkyPilot.
    "run": f"{who}exec {shlex.join(line)}\n",
  }


def main(argv: Sequence[str]) -> int:
  """Launches the task; returns sky's exit code. Raises Mistake."""
  by = parser(__doc__, ".venv/bin/python", 3)
  by.add_argument("--accelerators", required=True, metavar="TYPE:COUNT", help="per node")
  by.add_argument("--nodes", type=positive, default=1, metavar="N", help="default 1")
  by.add_argument("--name", default="simpo", help="job name (default simpo)")
  by.add_argument("--cluster", help="launch on this cluster, not as a managed job")
  by.add_argument("--setup", metavar="SHELL", help="default: install into .venv, for the platform")
  by.add_argument(
    "--mount",
    type=lambda text: text.partition("=")[::2],
    action="append",
    default=[],
    metavar="PATH=URL",
    help="a bucket as a folder, such as /outputs=gs://my-bucket; repeatable",
  )
  add_env(by)
  options, flags = parse(by, argv)
  if options.cluster and options.max_restarts:
    raise Mistake("only managed jobs are restarted; say --max-restarts=0 with --cluster")
  for path, url in options.mount:
    if not path.startswith("/") or not re.match(r"\w+://.", url):
      raise Mistake(f"--mount={path}={url}: expected PATH=URL, such as /outputs=gs://my-bucket")
  extra = "tpu" if options.accelerators.startswith("tpu") else "cuda12"
  install = f"python3 -m venv .venv && .venv/bin/pip install -e '.[{extra}]'"
  text = to_yaml(
    task(
      main_line(options.python, flags),
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
    print(f"# the task of: {shlex.join(['sky', *where, '--yes', 'TASK.yaml'])}", file=sys.stderr)
    return 0
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "task.yaml"
    file.touch(mode=0o600)  # --env may hold secrets
    file.write_text(text)
    return run(["sky", *where, "--yes", os.fspath(file)])[0]


if __name__ == "__main__":
  entry(main)
