"""A JobSet on GKE: one pod per host of a TPU slice, or per GPU node. Needs kubectl and JobSet.

  python launch/gke.py --name=mine --image=REGISTRY/simpo_jax --accelerator=tpu-v5p-slice \\
    --topology=2x2x4 --volume=my-claim:/outputs -- --config=configs/m11.py --workdir=/outputs/mine
  python launch/gke.py --name=mine --image=REGISTRY/simpo_jax --accelerator=nvidia-h100-80gb \\
    --hosts=2 --devices-per-host=8 -- --config=configs/m11.py --workdir=/outputs/mine

The image holds this repository, installed, in its working directory. A pod's disk ends with the
pod: --volume puts the workdir on a persistent volume claim that all hosts can write to.

When a pod fails JobSet restarts them all, up to --max-restarts times, and the run goes on (a pod
that is preempted saves, ends with exit code 75, and counts); exit code 2, a mistake, fails the
JobSet at once. --wait prints host 0's log and returns the exit code of the pod that failed first,
0 when all succeeded. A signal ends the waiting, not the JobSet: `kubectl delete jobset NAME` does,
with a SIGTERM to the pods. --dry-run prints the YAML.
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
  Mistake,
  add_env,
  entry,
  main_line,
  parse,
  parser,
  positive,
  run,
  say,
  to_yaml,
  whole,
)
from jobset import INDEX, LABEL, TPU, hosts_of, jobset

_POLL_SECONDS = 5


def build(options: argparse.Namespace, flags: Sequence[str]) -> dict:
  """Returns the JobSet that the command line asks for. Raises Mistake."""
  # Pods are called NAME-hosts-0-INDEX-suffix, and a host's name has at most 63 characters.
  if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", options.name):
    raise Mistake(f"--name={options.name}: use 1 to 40 of a-z, 0-9 and -, a letter first")
  kind = options.accelerator
  selector = {"cloud.google.com/gke-accelerator": kind}
  resource, hosts, per_host = "nvidia.com/gpu", options.hosts, options.devices_per_host
  if kind.startswith("tpu"):
    if not options.topology:
      raise Mistake(f"--accelerator={kind} needs its --topology, such as 2x2x4")
    resource, (hosts, per_host) = TPU, hosts_of(options.topology, per_host)
    if options.hosts not in (None, hosts):
      raise Mistake(f"--topology={options.topology} has {hosts} hosts, not {options.hosts}")
    selector = {
      "cloud.google.com/gke-tpu-accelerator": kind,
      "cloud.google.com/gke-tpu-topology": options.topology,
    }
  elif not (hosts and per_host):
    raise Mistake(f"--accelerator={kind} needs --hosts and --devices-per-host, its GPUs per host")
  return jobset(
    main_line(options.python, flags),
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

  Asks again while the cluster gives no answer. Raises KeyboardInterrupt for a signal.
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
  """Returns what the cluster says; {} if there is no such thing, None if it could not be asked."""
  command = [*kubectl, "get", *what, "--output=json"]
  done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
  return None if done.returncode else json.loads(done.stdout or "{}")


def _started(pod: dict, attempt: int) -> bool:
  of = pod["metadata"]["labels"].get(f"{LABEL}/restart-attempt")
  return of == str(attempt) and pod["status"]["phase"] != "Pending"


def _verdict(pods: Sequence[dict]) -> int:
  """Returns the exit code of the pod that failed first, and says which that was."""
  ends = [
    (end["finishedAt"], end["exitCode"], pod["metadata"]["name"])
    for pod in pods
    for container in pod["status"].get("containerStatuses", ())
    if (end := container["state"].get("terminated")) and end["exitCode"]
  ]
  if not ends:
    say("the JobSet failed, and none of its pods tells why; see kubectl describe jobset")
    return 1
  _, code, pod = min(ends)
  say(f"pod {pod} failed with exit code {code}; see kubectl logs {pod}")
  return code


def _volume(text: str) -> tuple[str, str]:
  claim, _, path = text.partition(":")
  if not claim or not path.startswith("/"):
    raise Mistake(f"--volume={text}: expected CLAIM:/PATH, such as my-claim:/outputs")
  return claim, path


def main(argv: Sequence[str]) -> int:
  """Creates the JobSet; returns kubectl's exit code, or with --wait the run's. Raises Mistake."""
  by = parser(__doc__, "python", 3)
  by.add_argument("--name", required=True, help="JobSet name")
  by.add_argument("--image", required=True, help="container image")
  by.add_argument(
    "--accelerator", required=True, metavar="KIND", help="GKE's, tpu-v5p-slice or nvidia-h100-80gb"
  )
  by.add_argument("--topology", metavar="AxBxC", help="TPU slice topology, which implies the hosts")
  by.add_argument("--hosts", type=positive, metavar="N", help="GPU nodes")
  by.add_argument(
    "--devices-per-host", type=positive, metavar="N", help="GPUs, or TPU chips (default 4) per host"
  )
  by.add_argument(
    "--volume",
    type=_volume,
    metavar="CLAIM:/PATH",
    help="persistent volume claim and its mount path",
  )
  by.add_argument(
    "--grace", type=whole, default=120, metavar="SECONDS", help="SIGTERM to SIGKILL (default 120)"
  )
  by.add_argument("--namespace", help="default: kubectl's")
  by.add_argument("--wait", action="store_true", help="follow the run; return its exit code")
  add_env(by)
  options, flags = parse(by, argv)
  text = to_yaml(build(options, flags))
  kubectl = ["kubectl", *([f"--namespace={options.namespace}"] if options.namespace else [])]
  # Not apply: that does nothing when an ended JobSet of this name and form is still there.
  command = [*kubectl, "create", "--filename=-"]
  if options.dry_run:
    print(text, end="", flush=True)
    print(f"# the input of: {shlex.join(command)}", file=sys.stderr)
    return 0
  code, stopped = run(command, text)
  if code or stopped or not options.wait:
    return code
  try:
    return follow(options.name, kubectl)
  except KeyboardInterrupt:
    say(f"no longer waiting; it runs on. End it: kubectl delete jobset {options.name}")
    return 130


if __name__ == "__main__":
  entry(main)
