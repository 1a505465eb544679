"""Launches a JobSet on GKE: one pod per host of a TPU slice, or per GPU node.

Needs kubectl, and JobSet installed in the cluster.

  python launch/gke.py --name=mine --image=REGISTRY/simpo_jax --accelerator=tpu-v5p-slice \\
    --topology=2x2x4 --volume=my-claim:/outputs -- --config=configs/m11.py --workdir=/outputs/mine
  python launch/gke.py --name=mine --image=REGISTRY/simpo_jax --accelerator=nvidia-h100-80gb \\
    --hosts=2 --devices-per-host=8 -- --config=configs/m11.py --workdir=/outputs/mine

The image must contain this repository, installed, in its working directory. A pod's disk is
deleted with the pod: --volume puts the workdir on a persistent volume claim that all hosts can
write to.

When a pod fails, JobSet restarts all pods, up to --max-restarts times, and the run resumes. A
preempted pod saves a checkpoint and exits with code 75, which also counts as a failure. Exit code
2, a user error, fails the JobSet immediately. --wait prints host 0's log and returns the exit code
of the pod that failed first, or 0 if all succeeded. A signal ends the waiting, not the JobSet; to
stop it, `kubectl delete jobset NAME` sends SIGTERM to the pods. --dry-run prints the YAML.
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence

from common import (
  UserError,
  add_env,
  entry,
  main_command,
  nonnegative_int,
  parse,
  parser,
  positive_int,
  run,
  say,
  to_yaml,
)
from jobset import INDEX, LABEL, TPU, hosts_of, jobset

_POLL_SECONDS = 5


def build(options: argparse.Namespace, flags: Sequence[str]) -> dict:
  """Returns the JobSet for the command line. Raises UserError."""
  # Pods are named NAME-hosts-0-INDEX-suffix, and hostnames have at most 63 characters.
  if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", options.name):
    raise UserError(f"--name={options.name}: use 1 to 40 of a-z, 0-9 and -, a letter first")
  kind = options.accelerator
  selector = {"cloud.google.com/gke-accelerator": kind}
  resource, hosts, per_host = "nvidia.com/gpu", options.hosts, options.devices_per_host
  if kind.startswith("tpu"):
    if not options.topology:
      raise UserError(f"--accelerator={kind} needs its --topology, such as 2x2x4")
    resource, (hosts, per_host) = TPU, hosts_of(options.topology, per_host)
    if options.hosts not in (None, hosts):
      raise UserError(f"--topology={options.topology} has {hosts} hosts, not {options.hosts}")
    selector = {
      "cloud.google.com/gke-tpu-accelerator": kind,
      "cloud.google.com/gke-tpu-topology": options.topology,
    }
  elif not (hosts and per_host):
    raise UserError(f"--accelerator={kind} needs --hosts and --devices-per-host, its GPUs per host")
  return jobset(
    main_command(options.python, flags),
    options.name,
    options.image,
    selector,
    resource,
    hosts,
    per_host,
    options.max_restarts,
    {"PYTHONUNBUFFERED": "1", **dict(options.env)},
    options.volume,
    options.grace,
  )


def follow(name: str, kubectl: Sequence[str]) -> int:
  """Prints host 0's log until the JobSet has ended; returns the exit code of the run.

  Retries while the cluster does not answer. Raises KeyboardInterrupt on a signal.
  """
  followed = -1
  while True:
    status = _get(kubectl, "jobset", name, "--ignore-not-found")
    pods = _get(kubectl, "pods", f"--selector={LABEL}/jobset-name={name}")
    if status is not None and not status:
      say(f"JobSet {name} was deleted")
      return 1
    status, pods = (status or {}).get("status", {}), (pods or {}).get("items", [])
    attempt = status.get("restarts", 0)
    first = [p for p in pods if _started(p, attempt) and p["metadata"]["annotations"][INDEX] == "0"]
    if attempt > followed and first:
      followed = attempt
      if run([*kubectl, "logs", "--follow", first[0]["metadata"]["name"]])[1]:
        raise KeyboardInterrupt
      continue
    match status.get("terminalState"):
      case "Completed":
        return 0
      case "Failed":
        return _verdict(pods)
    time.sleep(_POLL_SECONDS)


def _get(kubectl: Sequence[str], *what: str) -> dict | None:
  """Runs `kubectl get`; returns {} if the object does not exist, None if the command failed."""
  command = [*kubectl, "get", *what, "--output=json"]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
  return None if done.returncode else json.loads(done.stdout or "{}")


def _started(pod: dict, attempt: int) -> bool:
  pod_attempt = pod["metadata"]["labels"].get(f"{LABEL}/restart-attempt")
  return pod_attempt == str(attempt) and pod["status"]["phase"] != "Pending"


def _verdict(pods: Sequence[dict]) -> int:
  """Returns the exit code of the pod that failed first, and prints its name."""
  ends = [
    (end["finishedAt"], end["exitCode"], pod["metadata"]["name"])
    for pod in pods
    for container in pod["status"].get("containerStatuses", ())
    if (end := container["state"].get("terminated")) and end["exitCode"]
  ]
  if not ends:
    say("the JobSet failed without a failed container; see kubectl describe jobset")
    return 1
  _, code, pod = min(ends)
  say(f"pod {pod} failed with exit code {code}; see kubectl logs {pod}")
  return code


def _volume(text: str) -> tuple[str, str]:
  claim, _, path = text.partition(":")
  if not claim or not path.startswith("/"):
    raise UserError(f"--volume={text}: expected CLAIM:/PATH, such as my-claim:/outputs")
  return claim, path


def main(argv: Sequence[str]) -> int:
  """Creates the JobSet; returns kubectl's exit code, or the run's with --wait. Raises UserError."""
  args = parser(__doc__, "python", 3)
  args.add_argument("--name", required=True, help="JobSet name")
  args.add_argument("--image", required=True, help="container image")
  args.add_argument(
    "--accelerator",
    required=True,
    metavar="KIND",
    help="GKE's name, such as tpu-v5p-slice or nvidia-h100-80gb",
  )
  args.add_argument(
    "--topology", metavar="AxBxC", help="TPU slice topology, which implies the hosts"
  )
  args.add_argument("--hosts", type=positive_int, metavar="N", help="GPU nodes")
  args.add_argument(
    "--devices-per-host",
    type=positive_int,
    metavar="N",
    help="GPUs, or TPU chips (default 4) per host",
  )
  args.add_argument(
    "--volume",
    type=_volume,
    metavar="CLAIM:/PATH",
    help="persistent volume claim and its mount path",
  )
  args.add_argument(
    "--grace",
    type=nonnegative_int,
    default=120,
    metavar="SECONDS",
    help="time from SIGTERM to SIGKILL (default 120)",
  )
  args.add_argument("--namespace", help="default: kubectl's")
  args.add_argument("--wait", action="store_true", help="follow the run; return its exit code")
  add_env(args)
  options, flags = parse(args, argv)
  text = to_yaml(build(options, flags))
  kubectl = ["kubectl", *([f"--namespace={options.namespace}"] if options.namespace else [])]
  # Not `apply`, which does nothing if a finished JobSet with the same name and spec exists.
  command = [*kubectl, "create", "--filename=-"]
  if options.dry_run:
    print(text, end="", flush=True)
    print(f"# stdin of: {shlex.join(command)}", file=sys.stderr)
    return 0
  code, stopped = run(command, text)
  if code or stopped or not options.wait:
    return code
  try:
    return follow(options.name, kubectl)
  except KeyboardInterrupt:
    say(f"no longer waiting; the run continues. To end it: kubectl delete jobset {options.name}")
    return 130


if __name__ == "__main__":
  entry(main)
