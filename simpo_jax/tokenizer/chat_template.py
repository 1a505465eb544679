"""Chat templates of models, rendered by `chat_template_worker` within bounds of time and memory."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
from typing import IO, Any

from simpo_jax.errors import UserError
from simpo_jax.tokenizer.chat_template_worker import CPU_SECONDS, MAX_CHARACTERS, MEMORY_BYTES

_WORKER = pathlib.Path(__file__).with_name("chat_template_worker.py")
_worker: subprocess.Popen[bytes] | None = None  # one for the whole process, started when needed
_lock = threading.Lock()


class TemplateFailed(Exception):
  """The chat template refused a conversation (a role it does not know, say)."""


def render(template: str, variables: dict[str, Any], origin: str, date: str) -> str:
  """The text that a template makes of its variables, as transformers renders it.

  Args:
    template: Jinja source, which need not be trusted.
    variables: what JSON can hold.
    origin: where the template comes from, for messages.
    date: ISO 8601, what it takes for now.

  Raises:
    TemplateFailed: the template raised an error or is none, or the variables are larger
      than a template may write.
    UserError: the template went beyond the limits of `chat_template_worker`.
  """
  line = json.dumps({"template": template, "variables": variables, "date": date}).encode() + b"\n"
  if len(line) > 2 * MAX_CHARACTERS:
    raise TemplateFailed(f"the conversation takes {len(line)} bytes")
  with _lock:
    status, body = _ask(line)
  if status == "text":
    return body.decode()
  if status == "failed":
    raise TemplateFailed(body.decode())
  raise UserError(
    f"the chat template of {origin} went beyond its limits ({body.decode()}) for one conversation: "
    f"{CPU_SECONDS} s, {MEMORY_BYTES >> 20} MiB, {MAX_CHARACTERS} characters; fix chat_template"
  )


def _ask(line: bytes) -> tuple[str, bytes]:
  global _worker
  if _worker is None or _worker.poll() is not None:
    # -P: the files beside it are not modules of its own.
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
  except (BrokenPipeError, ValueError):  # ValueError: the end of its output
    code, _worker = _end(_worker), None
    return "limit", b"time" if code == -signal.SIGPROF else f"it ended with code {code}".encode()


def _pipes(worker: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes]]:
  assert worker.stdin and worker.stdout
  return worker.stdin, worker.stdout


def _end(worker: subprocess.Popen[bytes]) -> int:
  stdin, stdout = _pipes(worker)
  stdout.close()
  try:
    stdin.close()
  except BrokenPipeError:
    pass
  return worker.wait()


def _forget() -> None:
  global _worker, _lock
  _worker, _lock = None, threading.Lock()


# A forked process must not write into its parent's pipe.
os.register_at_fork(after_in_child=_forget)
