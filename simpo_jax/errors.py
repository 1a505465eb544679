"""The one error that a user is meant to see."""


class UserError(Exception):
  """Something the user can fix; the message is one line and says how.

  `main` prints the message alone and exits with code 2 (`--debug` shows the
  stack trace). Anything else that escapes is a bug and keeps its trace.
  """
