"""Errors that are reported to the user without a stack trace, and their exit codes."""

import reprlib
from typing import Any

INTERRUPTED = 130  # 128 + SIGINT, as in a shell: ^C before there was anything to save

_MAX_MESSAGE = 4000  # characters; a message may quote a damaged file
_MAX_VALUE = 80  # characters of a value quoted in a message


class UserError(Exception):
  """An error that the user can fix; the message is one line and says how.

  `main` prints only the message and exits with code 2 (`--debug` adds the stack trace). Any other
  exception that escapes is a bug and keeps its stack trace. The message is made printable and is
  shortened, since it may quote a damaged file.
  """

  exit_code = 2

  def __init__(self, message: str):
    text = one_line(message)
    if len(text) > _MAX_MESSAGE:  # its beginning says what is wrong and where, its end the fix
      text = f"{text[: _MAX_MESSAGE // 2]} ... {text[-_MAX_MESSAGE // 2 :]}"
    super().__init__(text)


class Interrupted(UserError):
  """The run was interrupted by something outside it: a host was lost, or a launch hangs.

  Exit code 75 (EX_TEMPFAIL of sysexits.h) tells whatever started the process, such as a job
  scheduler, to start it again.
  """

  exit_code = 75


class Stopped(Interrupted):
  """The run stopped on request, after all hosts have written its checkpoint."""


def one_line(error: BaseException | str) -> str:
  """Returns an error's message on one line, with unprintable characters escaped."""
  text = " ".join(str(error).split()) or type(error).__name__
  if text.isprintable():
    return text
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
  """Returns the first line of an error's message, without the advice that libraries append."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shown(value: Any) -> str:
  """Returns a value as it is written on the command line, shortened if it is long."""
  if isinstance(value, str):
    middle = _MAX_VALUE // 2
    return value if len(value) <= _MAX_VALUE else f"{value[:middle]}...{value[-middle:]}"
  try:
    return _SHORT_REPR.repr(value)
  except ValueError:  # sys.get_int_max_str_digits()
    return "(a number with thousands of digits)"


_SHORT_REPR = reprlib.Repr()
_SHORT_REPR.maxtuple = _SHORT_REPR.maxlist = 12
_SHORT_REPR.maxstring = _SHORT_REPR.maxother = _SHORT_REPR.maxlong = _MAX_VALUE
