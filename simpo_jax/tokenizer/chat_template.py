"""Renders chat templates in a worker process (`chat_template_worker`) with resource limits."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from typing import IO, Any

from simpo_jax.errors import UserError, one_line
from simpo_jax.tokenizer.chat_template_worker import CPU_SECONDS, MAX_CHARACTERS, MEMORY_BYTES

_WORKER = pathlib.Path(__file__).with_name("chat_template_worker.py")
_worker: subprocess.Popen[bytes] | None = None  # one per process, started on first use
_lock = threading.Lock()


class TemplateFailed(Exception):
  """The chat template raised an error, such as for a role that it does not support."""


def placeholder(value: Any) -> str:
  """What stands for a date or bytes, which rows of Parquet files hold, as in transformers."""
  return f"<{type(value).__name__}>"


def render(template: str, variables: dict[str, Any], origin: str, date: str) -> str:
  """Renders a chat template like transformers' `apply_chat_template`.

  Args:
    template: Jinja source, which may be untrusted.
    variables: other values than those of JSON, such as dates, appear as "<datetime>".
    origin: the model or file that the template comes from, for error messages.
    date: current time for the template's `strftime_now`, ISO 8601.

  Raises:
    TemplateFailed: the template raised an error, or the variables are too large.
    UserError: the template is not valid Jinja, or exceeded the limits of `chat_template_worker`.
  """
  request = {"template": template, "variables": variables, "date": date}
  line = json.dumps(request, default=placeholder).encode() + b"\n"
  if len(line) > 2 * MAX_CHARACTERS:
    raise TemplateFailed(f"the conversation is too long ({len(line)} bytes)")
  with _lock:
    status, body = _request(line)
  if status == "text":
    return body.decode()
  if status == "failed":
    raise TemplateFailed(body.decode())
  if status == "invalid":
    raise UserError(
      f"the chat template of {origin} is not valid Jinja ({one_line(body.decode())}); fix it, or "
      "replace it with --config.data.chat_template=FILE"
    )
  raise UserError(
    f"the chat template of {origin} went beyond its limits ({body.decode()}) for one conversation: "
    f"{CPU_SECONDS} s, {MEMORY_BYTES >> 20} MiB, {MAX_CHARACTERS} characters; fix chat_template"
  )


def _request(line: bytes) -> tuple[str, bytes]:
  global _worker
  if _worker is None or _worker.poll() is not None:
    # -P: the worker must not import the modules in its folder as top-level ones.
    _worker = subprocess.Popen(
      [sys.executable, "-P", str(_WORKER)],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=subprocess.DEVNULL,
    )
  stdin, stdout = _pipes(_worker)
  try:
    stdin.write(line)
    stdin.flush()
    status, size = stdout.readline().split()
    return status.decode(), stdout.read(int(size))
  except (BrokenPipeError, ValueError):  # ValueError: end of file, the worker has ended
    code, _worker = _reap(_worker), None
    return "limit", b"time" if code == -signal.SIGPROF else f"it ended with code {code}".encode()


def _pipes(worker: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
  assert worker.stdin and worker.stdout
  return worker.stdin, worker.stdout


def _reap(worker: subprocess.Popen[bytes]) -> int:
  stdin, stdout = _pipes(worker)
  stdout.close()
  try:
    stdin.close()
  except BrokenPipeError:
    pass
  return worker.wait()


def _reset_after_fork() -> None:
  global _worker, _lock
  _worker, _lock = None, threading.Lock()


# A forked process must not write into its parent's pipe.
os.register_at_fork(after_in_child=_reset_after_fork)
