"""Writes the report of a run, or of several beside each other, as one HTML file.

Examples:
  python -m simpo_jax.report runs/20261123-150000-m11
  python -m simpo_jax.report runs/a runs/b --out=compared.html

A run rewrites its own report.html as it goes; this is for runs that were killed, and to compare.
"""

import pathlib
from collections.abc import Sequence

from absl import flags

from simpo_jax.errors import UserError, one_line

_FLAGS = ("out", "max_mib", "debug")


def _define_flags() -> None:
  flags.DEFINE_string(
    "out",
    None,
    "The file; default: report.html in the run's folder, of several compared.html in the first.",
  )
  flags.DEFINE_integer("max_mib", 96, "Generated text that it takes, compressed.", lower_bound=0)
  flags.DEFINE_bool("debug", False, "Show the stack trace of errors.")
  flags.FLAGS.set_gnu_getopt()  # flags may follow the folders


def main(argv: Sequence[str]) -> None:
  """Writes it and says where it is."""
  from simpo_jax.report.page import write_report

  values = flags.FLAGS
  folders = [pathlib.Path(name).expanduser() for name in argv[1:]]
  if not folders:
    raise UserError("name one or more workdirs: python -m simpo_jax.report runs/mine (see --help)")
  name = "report.html" if len(folders) == 1 else "compared.html"
  out = pathlib.Path(values.out).expanduser() if values.out else folders[0] / name
  try:
    write_report(folders, out, values.max_mib * 2**20)
  except OSError as e:
    raise UserError(f"--out={out} cannot be written ({one_line(e)}); name another file") from e
  print(out)


if __name__ == "__main__":
  from simpo_jax.cli import run_program

  _define_flags()
  run_program(main, _FLAGS)
