"""A translated recipe as a config file, and as what a person reads."""

import shlex

from simpo_jax.config import flatten
from simpo_jax.import_config.translate import UNSUPPORTED, Translation, make_config


def config_text(translation: Translation, source: str, path: str) -> str:
  """The Python text of the config.

  Args:
    source: whose recipe it was, and its file's name.
    path: where the text will be.
  """
  # Texts of a stranger's file are in comments, a line each, and in literals that Python wrote.
  lines = [f'"""{_plain(source)}, translated by simpo_jax.import_config."""', ""]
  lines += [f"# {line}" for line in _steps(translation, path)]
  missing = [row for row in translation.rows if row.status == UNSUPPORTED]
  if missing:
    lines += ["#", "# What the recipe asks for beside this, and what is not done:"]
    lines += [f"#   {row.field}: {row.value} ({row.text})" for row in missing]
  lines += ["", "from simpo_jax.config import default_config", "", "", "def get_config():"]
  lines.append("  c = default_config()")
  values = flatten(make_config(translation.settings))  # in the types of the config
  lines += [f"  c.{name} = {values[name]!r}" for name in values if name in translation.settings]
  return "\n".join([*lines, "  return c", ""])


def _steps(translation: Translation, path: str) -> list[str]:
  flags = (f"--config={_plain(path)}", f"--workdir={_plain(translation.workdir)}")
  return [*translation.prepare, f"python -m simpo_jax.main {shlex.join(flags)}"]


def _plain(text: str) -> str:
  """The text without what would end a docstring or a line."""
  return "".join(c if c.isprintable() and c not in '"\\' else "?" for c in text)
