"""Processes that check annotations as the tests' own does: see conftest.py."""

import sys

# Before a file, the command that runs it.
CHECKED_PYTHON = (
  sys.executable,
  "-c",
  "import conftest, runpy, sys; sys.argv.pop(0); runpy.run_path(sys.argv[0], run_name='__main__')",
)
