"""Builds the JobSet that gke.py creates, as nested dicts."""

import math
import re
from collections.abc import Sequence

from common import COORDINATOR_PORT, USER_ERROR, UserError

LABEL = "jobset.sigs.k8s.io"
INDEX = "batch.kubernetes.io/job-completion-index"
TPU = "google.com/tpu"


def hosts_of(topology: str, per_host: int | None) -> tuple[int, int]:
  """Returns (hosts, chips per host) of a TPU slice such as 2x2x4. Raises UserError."""
  if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", topology):
    raise UserError(f"--topology={topology}: expected the slice's chips, such as 2x2x4 or 4x4")
  chips = math.prod(map(int, topology.split("x")))
  per_host = per_host or min(4, chips)
  if chips % per_host:
    raise UserError(f"--topology={topology} has {chips} chips; --devices-per-host must divide them")
  return chips // per_host, per_host


def jobset(
  line: Sequence[str],
  name: str,
  image: str,
  selector: dict[str, str],
  resource: str,
  hosts: int,
  per_host: int,
  restarts: int,
  env: dict[str, str],
  volume: tuple[str, str] | None,
  grace: int,
) -> dict:
  """Returns the JobSet as nested dicts: one Job, whose pods are the hosts."""
  container = {
    "name": "main",
    "image": image,
    "command": [_literal(word) for word in line],
    "env": _variables(env, None if resource == TPU else name, hosts),
    "ports": [{"containerPort": COORDINATOR_PORT, "protocol": "TCP"}],
    "resources": {"limits": {resource: per_host}},
  }
  pod = {
    "restartPolicy": "Never",
    "terminationGracePeriodSeconds": grace,
    "nodeSelector": selector,
    "containers": [container],
  }
  if volume:
    claim, path = volume
    container["volumeMounts"] = [{"name": "workdir", "mountPath": path}]
    pod["volumes"] = [{"name": "workdir", "persistentVolumeClaim": {"claimName": claim}}]
  user_error = {"containerName": "main", "operator": "In", "values": [USER_ERROR]}
  job = {
    "parallelism": hosts,
    "completions": hosts,
    "completionMode": "Indexed",
    "backoffLimit": 0,  # JobSet handles every failure: the hosts only restart together
    "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": user_error}]},
    "template": {"spec": pod},
  }
  metadata: dict = {"name": name}
  if resource == TPU:
    # Otherwise the pods could spread over two slices of the same kind.
    pool = {f"alpha.{LABEL}/exclusive-topology": "cloud.google.com/gke-nodepool"}
    metadata["annotations"] = pool
  never = {"name": "mistake", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
  return {
    "apiVersion": "jobset.x-k8s.io/v1alpha2",
    "kind": "JobSet",
    "metadata": metadata,
    "spec": {
      "network": {"enableDNSHostnames": True, "subdomain": name},
      "failurePolicy": {"maxRestarts": restarts, "rules": [never]},
      "replicatedJobs": [{"name": "hosts", "replicas": 1, "template": {"spec": job}}],
    },
  }


def _variables(env: dict[str, str], coordinator: str | None, hosts: int) -> list[dict]:
  """The containers' environment, with JAX's cluster variables unless TPU metadata has them."""
  variables: list[dict] = [{"name": k, "value": _literal(v)} for k, v in env.items()]
  if coordinator is None:
    return variables
  index = {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}
  address = f"{coordinator}-hosts-0-0.{coordinator}:{COORDINATOR_PORT}"
  return variables + [
    {"name": "JAX_COORDINATOR_ADDRESS", "value": address},
    {"name": "JAX_NUM_PROCESSES", "value": str(hosts)},
    {"name": "JAX_PROCESS_ID", "valueFrom": index},
  ]


def _literal(text: str) -> str:
  """Escapes `$`, since Kubernetes expands $(NAME) to the value of a variable."""
  return text.replace("$", "$$")
