"""Writes the report of one run, or of several runs side by side, as a single HTML file.

Examples:
  python -m simpo_jax.report runs/20261123-150000-m11
  python -m simpo_jax.report runs/a runs/b --out=compared.html

A run updates its own report.html; use this after a run was killed, and to compare runs.
"""

from collections.abc import Sequence

from absl import flags

from simpo_jax.errors import UserError, one_line
from simpo_jax.storage.paths import brief, plain, refuse_symlinks

_FLAGS = ("out", "max_mib", "debug")


def _define_flags() -> None:
  flags.DEFINE_string(
    "out",
    None,
    "Output file or pipe; default: report.html in the workdir, or compared.html in the first of "
    "several.",
  )
  flags.DEFINE_integer(
    "max_mib", 96, "Maximum compressed size of the generated text.", lower_bound=0
  )
  flags.DEFINE_bool("debug", False, "Show the stack trace of errors.")
  flags.FLAGS.set_gnu_getopt()  # flags may follow the folders


def main(argv: Sequence[str]) -> None:
  """Writes the report and prints its path, unless the report itself goes to a stream."""
  from simpo_jax.report.page import is_stream, write_report

  values = flags.FLAGS
  folders = [plain(name) for name in argv[1:]]
  if not folders:
    raise UserError("name one or more workdirs: python -m simpo_jax.report runs/mine (see --help)")
  name = "report.html" if len(folders) == 1 else "compared.html"
  out = plain(values.out) if values.out else folders[0] / name
  for folder in folders:
    refuse_symlinks(folder)
  try:
    stream = is_stream(out)
    write_report(folders, out, values.max_mib * 2**20)
  except OSError as e:
    raise UserError(
      f"--out={brief(out)} cannot be written ({one_line(e)}); name another file"
    ) from e
  if not stream:
    print(brief(out))


if __name__ == "__main__":
  from simpo_jax.cli import run_program

  _define_flags()
  run_program(main, _FLAGS)
