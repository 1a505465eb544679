"""Translates another trainer's SimPO recipe (YAML) to a config, and reports on each field.

Recipes are those of TRL, princeton-nlp/SimPO, the alignment handbook (old and new), LLaMA-Factory
and axolotl; which one it is follows from its fields, or from --form.

Examples:
  python -m simpo_jax.import_config simpo.yaml --devices=4 --pairs=61135 --out=configs/mine.py
  python -m simpo_jax.import_config cpo.yaml --devices=8 --pairs=20000 --data=pairs.jsonl

Each field is mapped, ignored for the reason given, done otherwise (differs), or not supported.
Unsupported fields would change the training: without --allow_unsupported, nothing is written and
the exit code is 2.
Fields that a recipe omits have the defaults of its own trainer, not of this project: TRL's are
beta 0.1, gamma 0.5 and a cross-entropy term on the chosen responses (cpo_alpha 1).
"""

from collections.abc import Sequence

from absl import flags

from simpo_jax.cli import run_program
from simpo_jax.errors import UserError
from simpo_jax.storage.paths import brief, plain

_FLAGS = (
  "form", "devices", "pairs", "data", "out", "force", "allow_unsupported", "debug",
)  # fmt: skip


def _define_flags() -> None:
  flags.DEFINE_enum(
    "form",
    "auto",
    ["auto", "trl", "handbook", "handbook_old", "princeton", "llamafactory", "axolotl"],
    "Recipe format; auto: detected from its fields.",
  )
  flags.DEFINE_integer("devices", None, "Number of devices the recipe assumes.", lower_bound=1)
  flags.DEFINE_integer(
    "pairs",
    None,
    "Number of pairs that are trained on, without those held out, to convert epochs to steps.",
    lower_bound=1,
  )
  flags.DEFINE_string(
    "data", None, "File or tfds:NAME to train on instead of the recipe's datasets."
  )
  flags.DEFINE_string("out", None, "Config file to write; default: print it.")
  flags.DEFINE_bool("force", False, "Overwrite an existing file.")
  flags.DEFINE_bool("allow_unsupported", False, "Ignore unsupported fields.")
  flags.DEFINE_bool("debug", False, "Show the stack trace of errors.")


def main(argv: Sequence[str]) -> None:
  """Prints a table of the fields, then prints or writes the config."""
  from simpo_jax.import_config.forms import FORMS, detect_form, markers_in
  from simpo_jax.import_config.parts import RunFacts
  from simpo_jax.import_config.reading import read_yaml
  from simpo_jax.import_config.translate import DIFFERS, UNSUPPORTED, translate
  from simpo_jax.import_config.writing import config_text

  values = flags.FLAGS
  if len(argv) != 2:
    raise UserError("name one YAML file: python -m simpo_jax.import_config FILE (see --help)")
  source, out = argv[1], values.out and plain(values.out)
  if out and not out.parent.is_dir():
    raise UserError(f"--out={values.out}: there is no folder {brief(out.parent)}; create it first")
  if out and out.exists() and not values.force:
    raise UserError(
      f"--out={values.out} already exists; name another file, or overwrite it with --force"
    )
  given = read_yaml(plain(source))
  form = detect_form(given, source) if values.form == "auto" else values.form
  signs = ", ".join(markers_in(given, form)[:3]) or "nothing that only it has"
  print(f"{source} is read as a recipe of {FORMS[form].trainer}: it has {signs}\n")
  facts = RunFacts(values.devices, values.pairs, values.data)
  translation = translate(given, form, facts, source)
  _print_table(translation.rows)
  differing = [row.field for row in translation.rows if row.status == DIFFERS]
  if differing:
    print(f"\nDone otherwise, as the table says: {', '.join(differing)}")
  missing = [row.field for row in translation.rows if row.status == UNSUPPORTED]
  if missing and not values.allow_unsupported:
    raise UserError(
      f"{source}: not supported, and the training would differ: {', '.join(missing)}; remove them "
      "from a copy of the file, or ignore them with --allow_unsupported"
    )
  title = f"{FORMS[form].trainer}'s {plain(source).name}"
  text = config_text(translation, title, values.out or "configs/mine.py")
  if not out:
    print(f"\n{text}", end="")
    return
  try:
    out.write_text(text)
  except OSError as e:
    raise UserError(
      f"--out={values.out} cannot be written ({e.strerror}); name another file"
    ) from e
  print(f"\n{values.out} is written. Next:")
  for line in text.splitlines():
    if line.startswith("# python "):
      print(f"  {line.removeprefix('# ')}")


def _print_table(rows: Sequence[tuple[str, ...]]) -> None:
  from rich.console import Console
  from rich.table import Table
  from rich.text import Text

  table = Table(show_edge=False)
  for title in ("field", "value", "status", "in simpo_jax"):
    table.add_column(title, overflow="fold")
  for row in rows:
    table.add_row(*map(Text, row))  # Text: brackets are not markup
  Console(highlight=False).print(table)


if __name__ == "__main__":
  _define_flags()
  run_program(main, _FLAGS)
