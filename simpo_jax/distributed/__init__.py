"""Host-side coordination of the processes of a run: start, comparison of settings, exit.

Uses JAX's coordination service and a TCP connection between the processes (`peer_connection.py`).
No function here launches a device program.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from jax._src import distributed

from simpo_jax.distributed.peer_connection import Loss, PeerConnection
from simpo_jax.errors import INTERRUPTED, Interrupted, Stopped, UserError, one_line

_GRACE_SECONDS = 2.0  # for this process to fail by itself once another is lost
_NOTICE_SECONDS = 30  # between notices that a process is still waited for
_SHOWN = 5  # differences listed in one message

_peers: PeerConnection | None = None
_host_names: list[str] = []  # by process
_gather_counts: Counter[str] = Counter()  # calls of `gather` so far, by name
_exit_hooks: list[Callable[[str], None]] = []
_exit_lock = threading.Lock()


class Options(NamedTuple):
  """The command line's flags; the environment supplies those that are None."""

  mode: str = "auto"  # auto | off
  coordinator_address: str | None = None
  num_processes: int | None = None
  process_id: int | None = None


class _Coordinates(NamedTuple):
  coordinator_address: str
  num_processes: int
  process_id: int


def start(options: Options) -> None:
  """Joins the other processes of the run, if any; must come before JAX opens any device.

  Raises:
    UserError: flags or variables are incomplete, or the other processes cannot be reached.
  """
  if options.mode == "off":
    return
  group = _explicit(options, os.environ)
  if group is None and not _on_tpu(os.environ):
    _refuse_lone_task(os.environ)
    return
  # The ledger passes stop requests on; JAX's preemption service would catch the SIGTERM first.
  jax.config.update("jax_enable_preemption_service", False)
  try:
    if group:
      jax.distributed.initialize(*group, cluster_detection_method="deactivate")
    else:
      jax.distributed.initialize()
  except (RuntimeError, ValueError, TypeError) as e:
    what = f"as process {group.process_id} of {group.num_processes} " if group else ""
    at = f"at {group.coordinator_address} " if group else ""
    raise UserError(
      f"could not join the run {what}{at}({one_line(e)}); start every process with "
      "the same coordinator address and number, or --distributed=off for this one alone"
    ) from e
  if jax.process_count() > 1:
    _connect_to_peers()


def _explicit(options: Options, env: Mapping[str, str]) -> _Coordinates | None:
  """The processes that flags and variables name; None if they name none."""
  given = {
    "coordinator_address": options.coordinator_address or env.get("JAX_COORDINATOR_ADDRESS"),
    "num_processes": _integer(options.num_processes, env, "JAX_NUM_PROCESSES"),
    "process_id": _integer(options.process_id, env, "JAX_PROCESS_ID"),
  }
  if all(value is None for value in given.values()):
    return None
  if missing := [name for name, value in given.items() if value is None]:
    raise UserError(
      f"--{missing[0]} (or JAX_{missing[0].upper()}) is missing: give all of "
      "--coordinator_address, --num_processes and --process_id, or none of them"
    )
  group = _Coordinates(**given)
  if not 0 <= group.process_id < group.num_processes:
    raise UserError(
      f"--process_id={group.process_id} is not in 0..{group.num_processes - 1} "
      f"(--num_processes={group.num_processes})"
    )
  if not group.coordinator_address.rpartition(":")[2].isdigit():
    raise UserError(f"--coordinator_address={group.coordinator_address} must be HOST:PORT")
  return group


def _integer(flag: int | None, env: Mapping[str, str], variable: str) -> int | None:
  text = env.get(variable)
  if flag is not None or not text:
    return flag
  if not text.isdigit():
    raise UserError(f"{variable}={text} must be a whole number")
  return int(text)


def _on_tpu(env: Mapping[str, str]) -> bool:
  """Whether this is a TPU host, where JAX finds the other hosts of the slice by itself."""
  devices = any(os.path.exists(path) for path in ("/dev/accel0", "/dev/vfio/0"))
  return "tpu" in env.get("JAX_PLATFORMS", "tpu") and (
    devices or bool(env.get("TPU_WORKER_HOSTNAMES"))
  )


def _refuse_lone_task(env: Mapping[str, str]) -> None:
  tasks = env.get("SLURM_STEP_NUM_TASKS", "1")
  if tasks != "1":
    raise UserError(
      f"this is one of {tasks} tasks of a Slurm step, and JAX_COORDINATOR_ADDRESS is not set: "
      "start with launch/slurm.py, or pass --distributed=off to run each task by itself"
    )


def _connect_to_peers() -> None:
  global _peers
  process = jax.process_index()
  _peers = PeerConnection(process, jax.process_count(), _on_loss)
  if process == 0:
    token = secrets.token_hex(16)
    _client().key_value_set("simpo_jax/peers", f"{_peers.listen(token)} {token}")
  else:
    port, token = _client().blocking_key_value_get("simpo_jax/peers", 300_000).split()
    host = str(_service().coordinator_address).rpartition(":")[0]
    try:
      _peers.connect(host.strip("[]"), int(port), token)
    except OSError as e:
      raise UserError(
        f"cannot reach process 0 at {host}:{port} ({e.strerror or e}); let the hosts of the run "
        "connect to each other on any port"
      ) from e
  _host_names[:] = gather("host_name", socket.gethostname())


def _service() -> Any:
  # JAX has no public name for its coordination service; Orbax uses this one, too.
  return distributed.global_state


def _client() -> Any:
  """Returns the client of the coordination service's key-value store."""
  return _service().client


def host_text(process: int) -> str:
  """Names a process in messages, such as "host 2 (worker-2)"."""
  return f"host {process}" + (f" ({_host_names[process]})" if process < len(_host_names) else "")


def processes_here() -> int:
  """Number of processes of the run on this machine, which share its memory."""
  return _host_names.count(_host_names[jax.process_index()]) if _host_names else 1


def min_over_hosts(name: str, number: int | None) -> int | None:
  """Minimum over all processes; None if any process passes None. All must call this."""
  numbers = [json.loads(text) for text in gather(name, json.dumps(number))]
  return None if None in numbers else min(numbers)


def gather(name: str, text: str) -> list[str]:
  """Returns the texts of all processes; all must call with the same names in the same order."""
  if jax.process_count() == 1:
    return [text]
  client = _client()
  _gather_counts[name] += 1
  key = f"simpo_jax/{name}/{_gather_counts[name]}"
  client.key_value_set(f"{key}/{jax.process_index()}", text)
  texts = []
  for process in range(jax.process_count()):
    start_time = time.monotonic()
    while True:
      try:
        texts.append(client.blocking_key_value_get(f"{key}/{process}", _NOTICE_SECONDS * 1000))
        break
      except jax.errors.JaxRuntimeError as e:
        if "DEADLINE_EXCEEDED" not in str(e):
          raise peer_failure(f"while comparing {name}") or e from e
        waited = time.monotonic() - start_time
        print(f"waiting for the {name} of {host_text(process)}: {waited:.0f} s", file=sys.stderr)
  return texts


def agree(name: str, fields: dict[str, str]) -> None:
  """Checks that the fields are equal on all processes; all must call this.

  Raises:
    UserError: names the hosts and the fields that differ from host 0.
  """
  everyone = [json.loads(text) for text in gather(name, json.dumps(fields))]
  problems = []
  for process, theirs in enumerate(everyone[1:], start=1):
    differ = [f for f in {**everyone[0], **theirs} if everyone[0].get(f) != theirs.get(f)]
    if differ:
      listed = ", ".join(
        f"{f} {theirs.get(f, 'absent')} (host 0: {everyone[0].get(f, 'absent')})"
        for f in differ[:_SHOWN]
      )
      more = f" and {len(differ) - _SHOWN} more" if len(differ) > _SHOWN else ""
      problems.append(f"{host_text(process)} has {listed}{more}")
  if problems:
    raise UserError(
      f"the hosts differ, nothing was run: {'; '.join(problems)}; start all hosts with the same "
      "command, files and packages"
    )


@contextlib.contextmanager
def ending_together():
  """Ends the processes together: an exception in the body of one ends all, with its message."""
  try:
    yield
  except Stopped:  # raised on all processes, at the same launch
    finish()
    raise
  except BaseException as e:
    if _peers is None or (isinstance(e, SystemExit) and not e.code):
      raise
    if isinstance(e, KeyboardInterrupt):
      end(INTERRUPTED, "stopped by ^C")
    if not isinstance(e, (UserError, SystemExit)):
      traceback.print_exc()
    end(getattr(e, "exit_code", 1), one_line(e))


def add_exit_hook(hook: Callable[[str], None]) -> None:
  """Has `end` call `hook(error)` before it ends the process, from any thread."""
  _exit_hooks.append(hook)


def peer_failure(doing: str) -> Interrupted | None:
  """The error to raise if a launch or exchange failed since a process was lost, else None."""
  if _peers and _peers.lost.wait(_GRACE_SECONDS) and _peers.loss:
    return Interrupted(_loss_text(_peers.loss, doing))
  return None


def _loss_text(loss: Loss, doing: str = "") -> str:
  during = f" {doing}" if doing else ""
  who = f"{host_text(loss.process)} was lost{during}"
  if loss.code == UserError.exit_code:
    return f"{who}: {loss.text}"
  ended = f"ended with code {loss.code}: " if loss.code else ""
  return f"{who}: {ended}{loss.text}; start the run again to continue"


def _on_loss(loss: Loss) -> None:
  """Ends this process; called in the connection's thread."""
  if loss.process != 0 or loss.code is not None:
    # The main thread may fail by itself meanwhile, with a message that says more.
    time.sleep(_GRACE_SECONDS)
  code = UserError.exit_code if loss.code == UserError.exit_code else Interrupted.exit_code
  end(code, _loss_text(loss))


def end(code: int, error: str) -> None:
  """Ends this process immediately, from any thread: prints the error and notifies the others.

  Skips `atexit` functions, among them JAX's shutdown barrier.
  """
  with _exit_lock:  # never released: the first caller ends the process
    prefix = f"host {jax.process_index()}: " if _peers else ""
    print(f"{prefix}error: {error}", file=sys.stderr, flush=True)
    for hook in _exit_hooks:
      hook(error)
    if _peers:
      _peers.leave(code, error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def finish() -> None:
  """Notifies the other processes that this one ends normally."""
  if _peers:
    _peers.clean_exit()
