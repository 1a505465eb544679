"""Several processes as one run: who is who, and what they tell each other beside the devices.

All of it is host side, through jax's coordination service and a line of our own
(`peer_connection.py`): comparing notes before the first launch, and ending together. No function
here launches a device program.
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

_GRACE = 2.0  # seconds for this process to end by itself once another has
_ASK_AGAIN = 30  # seconds between notices that a process is still waited for
_SHOWN = 5  # differences listed in one message

_peers: PeerConnection | None = None
_names: list[str] = []  # host names, by process
_rounds: Counter[str] = Counter()  # how often each name was gathered under
_last_words: list[Callable[[str], None]] = []
_leaving = threading.Lock()


class Options(NamedTuple):
  """The command line's flags; what is None comes from the environment."""

  mode: str = "auto"  # auto | off
  coordinator_address: str | None = None
  num_processes: int | None = None
  process_id: int | None = None


class _Coordinates(NamedTuple):
  coordinator_address: str
  num_processes: int
  process_id: int


def start(options: Options) -> None:
  """Joins the other processes of the run, if there are any; before any device is asked for.

  Raises:
    UserError: the flags or variables are incomplete, or the others cannot be reached.
  """
  if options.mode == "off":
    return
  group = _explicit(options, os.environ)
  if group is None and not _on_tpu(os.environ):
    _refuse_lone_task(os.environ)
    return
  # A stop request is the ledger's to pass on: jax's own notice of SIGTERM would swallow it.
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
    _join_line()


def _explicit(options: Options, env: Mapping[str, str]) -> _Coordinates | None:
  """What flags and variables say, or None if they say nothing."""
  given = {
    "coordinator_address": options.coordinator_address or env.get("JAX_COORDINATOR_ADDRESS"),
    "num_processes": _number(options.num_processes, env, "JAX_NUM_PROCESSES"),
    "process_id": _number(options.process_id, env, "JAX_PROCESS_ID"),
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


def _number(flag: int | None, env: Mapping[str, str], variable: str) -> int | None:
  text = env.get(variable)
  if flag is not None or not text:
    return flag
  if not text.isdigit():
    raise UserError(f"{variable}={text} must be a whole number")
  return int(text)


def _on_tpu(env: Mapping[str, str]) -> bool:
  """Whether this is a TPU host, where jax finds the others of the slice by itself."""
  devices = any(os.path.exists(path) for path in ("/dev/accel0", "/dev/vfio/0"))
  return "tpu" in env.get("JAX_PLATFORMS", "tpu") and (
    devices or bool(env.get("TPU_WORKER_HOSTNAMES"))
  )


def _refuse_lone_task(env: Mapping[str, str]) -> None:
  tasks = env.get("SLURM_STEP_NUM_TASKS", "1")
  if tasks != "1":
    raise UserError(
      f"this is one of {tasks} tasks of a Slurm step, and JAX_COORDINATOR_ADDRESS is not set: "
      "start with launch/slurm.py, or say --distributed=off to run each task by itself"
    )


def _join_line() -> None:
  global _peers
  process = jax.process_index()
  _peers = PeerConnection(process, jax.process_count(), _lost)
  if process == 0:
    token = secrets.token_hex(16)
    _client().key_value_set("simpo_jax/line", f"{_peers.listen(token)} {token}")
  else:
    port, token = _client().blocking_key_value_get("simpo_jax/line", 300_000).split()
    host = str(_service().coordinator_address).rpartition(":")[0]
    try:
      _peers.connect(host.strip("[]"), int(port), token)
    except OSError as e:
      raise UserError(
        f"cannot reach process 0 at {host}:{port} ({e.strerror or e}); let the hosts of the run "
        "connect to each other on any port"
      ) from e
  _names[:] = gather("host_name", socket.gethostname())


def _service() -> Any:
  # jax offers its coordination service to Orbax and others under this name only.
  return distributed.global_state


def _client() -> Any:
  """Of the coordination service's key-value store."""
  return _service().client


def host_text(process: int) -> str:
  """ "host 2 (worker-2)"."""
  return f"host {process} ({_names[process]})" if process < len(_names) else f"host {process}"


def processes_here() -> int:
  """Processes of the run on this machine, which share its memory."""
  return _names.count(_names[jax.process_index()]) if _names else 1


def min_over_hosts(name: str, number: int | None) -> int | None:
  """The least number of any process, so that all choose by the same; None if one has None."""
  numbers = [json.loads(text) for text in gather(name, json.dumps(number))]
  return None if None in numbers else min(numbers)


def gather(name: str, text: str) -> list[str]:
  """Every process's text, by process; all must ask for the same names in the same order."""
  if jax.process_count() == 1:
    return [text]
  client = _client()
  _rounds[name] += 1
  key = f"simpo_jax/{name}/{_rounds[name]}"
  client.key_value_set(f"{key}/{jax.process_index()}", text)
  texts = []
  for process in range(jax.process_count()):
    start_time = time.monotonic()
    while True:
      try:
        texts.append(client.blocking_key_value_get(f"{key}/{process}", _ASK_AGAIN * 1000))
        break
      except jax.errors.JaxRuntimeError as e:
        if "DEADLINE_EXCEEDED" not in str(e):
          raise peer_failure(f"while comparing {name}") or e from e
        waited = time.monotonic() - start_time
        print(f"waiting for the {name} of {host_text(process)}: {waited:.0f} s", file=sys.stderr)
  return texts


def agree(name: str, fields: dict[str, str]) -> None:
  """Makes sure that all processes have the same fields.

  Raises:
    UserError: names the hosts that differ from host 0, and in which fields.
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
  """Whatever ends the body of one of several processes is told to the others, and ends it."""
  try:
    yield
  except Stopped:  # on all of them, at the same launch
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


def at_end(words: Callable[[str], None]) -> None:
  """Has `words(error)` called should this process be ended from outside its main thread."""
  _last_words.append(words)


def peer_failure(doing: str) -> Interrupted | None:
  """Why a launch or exchange failed, if it is that another process was lost."""
  if _peers and _peers.lost.wait(_GRACE) and _peers.loss:
    return Interrupted(_loss_text(_peers.loss, doing))
  return None


def _loss_text(loss: Loss, doing: str = "") -> str:
  during = f" {doing}" if doing else ""
  who = f"{host_text(loss.process)} was lost{during}"
  if loss.code == UserError.exit_code:
    return f"{who}: {loss.text}"
  ended = f"ended with code {loss.code}: " if loss.code else ""
  return f"{who}: {ended}{loss.text}; start the run again to go on"


def _lost(loss: Loss) -> None:
  """In the line's thread: ends this process, unless it is about to end by itself."""
  if loss.process != 0 or loss.code is not None:
    time.sleep(_GRACE)
    # The main thread has had the time to fail by itself, and say more.
  code = UserError.exit_code if loss.code == UserError.exit_code else Interrupted.exit_code
  end(code, _loss_text(loss))


def end(code: int, error: str) -> None:
  """Ends this process now, from any thread: its error, the others told, no barrier at exit."""
  with _leaving:  # never released: the first caller ends the process
    prefix = f"host {jax.process_index()}: " if _peers else ""
    print(f"{prefix}error: {error}", file=sys.stderr, flush=True)
    for words in _last_words:
      words(error)
    if _peers:
      _peers.leave(code, error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def finish() -> None:
  """Tells the others that this process ends as it should."""
  if _peers:
    _peers.clean_exit()
