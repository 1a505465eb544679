"""Writes docs/configuration.md, the reference of all fields, out of simpo_jax/config.py.

  python docs/make_reference.py

A field's meaning is its comment there; values are those that simpo_jax/config_check.py takes.
"""

import pathlib
import re

from simpo_jax.cli import meanings
from simpo_jax.config import default_config, flatten
from simpo_jax.config_check import _CHOICES, _ELEMENTS, _RANGES

PAGE = pathlib.Path(__file__).with_name("configuration.md")
_BEGINNING = """\
# Configuration

<!-- Written by docs/make_reference.py: change simpo_jax/config.py, then run it again. -->

A config file calls `default_config()`, changes what it needs and returns it; the command line
overrides single fields:

```bash
python -m simpo_jax.main --config=configs/m11.py --config.train.steps=20 \\
  --config.generate.at_steps='(5,10)'
```

Fields that take several values are tuples: `--config.data.train="('a.json','b.json')"`. A single
one may stand alone: `--config.data.train=a.json`. A mistyped name or value is refused before
anything starts, with the nearest name that exists. `python -m simpo_jax.main --help` prints this
list, too, and `config.json` in a run's workdir has the values that it had.
"""


def reference() -> str:
  """The text of the page."""
  meaning_of, fields = meanings(), flatten(default_config())
  groups: dict[str, list[str]] = {}
  for name in meaning_of:
    if name in fields:
      groups.setdefault(name.rpartition(".")[0], []).append(name)
  parts = [_BEGINNING]
  for group, names in groups.items():
    said = meaning_of[group] if group else "what belongs to no group"
    parts.append(f"\n## {group or 'General'}\n\n{said[0].upper()}{said[1:]}.\n")
    parts.append("| field | default | meaning | values |\n|---|---|---|---|")
    for name in names:
      meaning = meaning_of[name]
      if meaning.split(" | ") == list(_CHOICES.get(name, ())):
        meaning = ""  # they stand beside it
      cells = (f"`{name}`", _code(fields[name]), _plain(meaning), _values(name, fields[name]))
      parts.append(f"| {' | '.join(cells)} |")
  return "\n".join(parts) + "\n"


def _values(name: str, default) -> str:
  if name in _CHOICES:
    return ", ".join(f"`{choice}`" for choice in _CHOICES[name])
  if name in _ELEMENTS:
    return f"such as `{_ELEMENTS[name][1]}`"
  if name not in _RANGES:
    return "`True`, `False`" if isinstance(default, bool) else "text"
  low, high = _RANGES[name]
  whole = "whole, " if isinstance(default, int) else ""
  return f"{whole}from {low:g}" + ("" if high is None else f" to {_number(high)}")


def _number(value) -> str:
  return f"{value:,}" if isinstance(value, int) else f"{value:.7g}"


def _code(value) -> str:
  return f"`{value!r}`" if value != "" else '`""`'


def _plain(text: str) -> str:
  """As a table's cell: what Markdown would read as its own is escaped outside of code."""
  parts = text.replace("|", "\\|").split("`")
  parts[::2] = [re.sub(r"([<*_\[\]])", r"\\\1", part) for part in parts[::2]]
  return "`".join(parts)


if __name__ == "__main__":
  PAGE.write_text(reference())
  print(PAGE)
