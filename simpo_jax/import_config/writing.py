"""Writes a translated recipe as a config file."""

import shlex

from simpo_jax.config import flatten
from simpo_jax.import_config.translate import DIFFERS, UNSUPPORTED, Translation, make_config

_TOLD = ((DIFFERS, "are done otherwise"), (UNSUPPORTED, "are not supported"))


def config_text(translation: Translation, source: str, path: str) -> str:
  """Returns the Python source of the config.

  Args:
    translation: the translated recipe.
    source: form and file name of the recipe, for the docstring.
    path: where the config will be stored, for the command in its comments.
  """
  # The recipe is untrusted: its texts are only in one-line comments and in `repr` literals.
  lines = [f'"""{_plain(source)}, translated by simpo_jax.import_config."""', ""]
  lines += [f"# {line}" for line in _steps(translation, path)]
  for status, title in _TOLD:
    rows = [row for row in translation.rows if row.status == status]
    if rows:
      lines += ["#", f"# Fields of the recipe that {title}:"]
      lines += [f"#   {row.field}: {row.value} ({row.text})" for row in rows]
  lines += ["", "from simpo_jax.config import default_config", "", "", "def get_config():"]
  lines.append("  c = default_config()")
  values = flatten(make_config(translation.settings))  # in the config's types
  lines += [f"  c.{name} = {values[name]!r}" for name in values if name in translation.settings]
  return "\n".join([*lines, "  return c", ""])


def _steps(translation: Translation, path: str) -> list[str]:
  flags = (f"--config={_plain(path)}", f"--workdir={_plain(translation.workdir)}")
  return [*translation.prepare, f"python -m simpo_jax.main {shlex.join(flags)}"]


def _plain(text: str) -> str:
  """Replaces characters that could end a docstring or a comment."""
  return "".join(c if c.isprintable() and c not in '"\\' else "?" for c in text)
