"""Renders chat templates in a separate process, where the OS limits their time and memory.

A chat template is a program that comes with a model. Jinja's sandbox denies it access to files and
Python's internals, but does not prevent nested loops or lists that double in size, and no check of
single operations can. `chat_template` runs this file as a script: it reads one JSON object per
line, and responds to each with a line "STATUS SIZE" followed by SIZE bytes. The environment is
that of transformers' `apply_chat_template`; a test compares the two.
"""

import contextlib
import datetime
import functools
import json
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

CPU_SECONDS = 5
MEMORY_BYTES = 2**30  # of address space: about 50 times what a conversation needs
MAX_CHARACTERS = 2**24


class _TooLong(Exception):
  pass


class _Generation(jinja2.ext.Extension):
  """{% generation %}, with which some trainers mark assistant text; renders only its body."""

  tags = {"generation"}

  def parse(self, parser: Parser) -> nodes.Node:
    line = next(parser.stream).lineno
    body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
    return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

  def _body(self, caller: Callable[[], str]) -> str:
    return caller()


class _Namespace(jinja2.utils.Namespace):
  """A namespace that rejects names with a leading underscore, which expose Python's internals."""

  def __init__(*args: Any, **kwargs: Any):  # a field may be named self
    self, *rest = args
    fields = dict(*rest, **kwargs)
    for name in fields:
      _check_name(name)
    jinja2.utils.Namespace.__init__(self, fields)

  def __setitem__(self, name: str, value: Any) -> None:
    _check_name(name)
    super().__setitem__(name, value)


class _Dict:
  """`dict` without the attributes of a Python type."""

  def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict(*args, **kwargs)

  def fromkeys(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
    return dict.fromkeys(*args, **kwargs)


def _check_name(name: Any) -> None:
  if isinstance(name, str) and name.startswith("_"):
    raise jinja2.exceptions.SecurityError(f"a namespace cannot hold {name!r}")


def _raise(message: str) -> NoReturn:
  raise jinja2.exceptions.TemplateError(message)


def _to_json(
  x: Any,
  ensure_ascii: bool = False,
  indent: int | str | None = None,
  separators: tuple[str, str] | None = None,
  sort_keys: bool = False,
) -> str:
  return json.dumps(
    x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
  )


def _environment() -> ImmutableSandboxedEnvironment:
  environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, jinja2.ext.loopcontrols]
  )
  environment.filters["tojson"] = _to_json
  environment.globals |= {
    "raise_exception": _raise,
    "dict": _Dict(),
    "namespace": _Namespace,
  }
  return environment


def _render(template: jinja2.Template, variables: dict[str, Any], date: str) -> str:
  now = datetime.datetime.fromisoformat(date)
  pieces, size = [], 0
  for piece in template.generate({**variables, "strftime_now": lambda form: now.strftime(form)}):
    size += len(piece)
    if size > MAX_CHARACTERS:
      raise _TooLong
    pieces.append(piece)
  return "".join(pieces)


def _handle_request(compiled: Callable[[str], jinja2.Template], line: bytes) -> tuple[str, bytes]:
  try:
    request = json.loads(line)
    try:
      template = compiled(request["template"])
    except jinja2.TemplateSyntaxError as error:
      return "invalid", f"line {error.lineno}: {error.message}".encode(errors="replace")
    text = _render(template, request["variables"], request["date"])
    return "text", text.encode()
  except MemoryError:
    return "limit", b"memory"
  except _TooLong:
    return "limit", b"characters"
  except Exception as error:
    message = " ".join(str(error)[:1000].split()) or type(error).__name__
    return "failed", message.encode(errors="replace")


def main() -> None:
  """Handles requests until stdin is closed, or until a limit ends the process."""
  for number in (signal.SIGINT, signal.SIGTERM):  # the run handles them, and may continue
    signal.signal(number, signal.SIG_IGN)
  signal.signal(signal.SIGPROF, signal.SIG_DFL)  # the parent may ignore it, which is inherited
  with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
  resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
  compiled = functools.lru_cache(maxsize=4)(_environment().from_string)
  while line := sys.stdin.buffer.readline():
    # CPU time, so that no template fails on a busy or suspended machine. SIGPROF's default action
    # ends the process, even inside one long operation.
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    status, body = _handle_request(compiled, line)
    signal.setitimer(signal.ITIMER_PROF, 0)
    sys.stdout.buffer.write(f"{status} {len(body)}\n".encode() + body)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
  main()
