"""The errors that a user is meant to see, and the exit codes they end a process with."""

import reprlib
from typing import Any

INTERRUPTED = 130  # the exit code of a shell for SIGINT: a ^C where there was no step to end first

_MOST = 4000  # characters of a message, which may quote a file that nobody wrote
_SHOWN = 80  # characters of a value in it


class UserError(Exception):
  """Something the user can fix; the message is one line and says how.

  `main` prints the message alone and exits with code 2 (`--debug` shows the
  stack trace). Anything else that escapes is a bug and keeps its trace. What the
  message quotes, such as a name in a damaged file, comes out printable and short.
  """

  exit_code = 2

  def __init__(self, message: str):
    text = one_line(message)
    if len(text) > _MOST:  # where it went wrong stands at the beginning, the fix at the end
      text = f"{text[: _MOST // 2]} ... {text[-_MOST // 2 :]}"
    super().__init__(text)


class Interrupted(UserError):
  """Nothing is wrong with the run itself: a host was lost, or a launch hangs.

  Exit code 75 (EX_TEMPFAIL of sysexits.h) tells a launcher to start the run again.
  """

  exit_code = 75


class Stopped(Interrupted):
  """The run was asked to stop, and has: its checkpoint is written on all hosts."""


def one_line(error: BaseException | str) -> str:
  """An error's message without its line breaks; no character of it moves a terminal's cursor."""
  text = " ".join(str(error).split()) or type(error).__name__
  if text.isprintable():
    return text
  return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
  """Of an error's message: where libraries add paragraphs of advice, it says what went wrong."""
  return (str(error).strip().splitlines() or [type(error).__name__])[0]


def shown(value: Any) -> str:
  """A value as it is written on a command line, cut if it is long."""
  if isinstance(value, str):
    middle = _SHOWN // 2
    return value if len(value) <= _SHOWN else f"{value[:middle]}...{value[-middle:]}"
  try:
    return _SHORT.repr(value)
  except ValueError:  # Python refuses to write so many digits
    return "(a number of thousands of digits)"


_SHORT = reprlib.Repr()
_SHORT.maxtuple = _SHORT.maxlist = 12
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = _SHOWN
