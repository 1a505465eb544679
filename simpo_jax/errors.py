"""The errors that a user is meant to see, and the exit codes they end a process with."""


class UserError(Exception):
  """Something the user can fix; the message is one line and says how.

  `main` prints the message alone and exits with code 2 (`--debug` shows the
  stack trace). Anything else that escapes is a bug and keeps its trace.
  """

  exit_code = 2


class Interrupted(UserError):
  """Nothing is wrong with the run itself: a host was lost, or a launch hangs.

  Exit code 75 (EX_TEMPFAIL of sysexits.h) tells a launcher to start the run again.
  """

  exit_code = 75


class Stopped(Interrupted):
  """The run was asked to stop, and has: its checkpoint is written on all hosts."""


def one_line(error: BaseException) -> str:
  """An error's message without its line breaks."""
  return " ".join(str(error).split()) or type(error).__name__
