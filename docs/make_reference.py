"""Writes docs/configuration.md, the reference of all fields, from the table in simpo_jax/settings.

python docs/make_reference.py

"""

import dataclasses
import itertools
import pathlib
import re

from simpo_jax.settings import FIELDS, Settings
from simpo_jax.settings.field import Field

PAGE = pathlib.Path(__file__).with_name("configuration.md")
KEPT = pathlib.Path(__file__).with_name("compatibility.md")
_BEGINNING = """\
# Configuration

<!-- Written by docs/make_reference.py: change simpo_jax/settings/, then run it again. -->

A config file calls `default_config()`, changes what it needs and returns it; the command line
overrides single fields:

```bash
python -m simpo_jax.main --config=configs/m11.py --config.train.steps=20 \\
  --config.generate.at_steps='(5,10)'
```

Fields that take several values are tuples: `--config.data.train="('a.json','b.json')"`. Commas
alone separate them, too, except in texts (`generate.prompt_list`, `generate.stop`):
`--config.data.train=a.json,b.json`. A single one may stand alone. A mistyped name or value is
refused before
anything starts, with the nearest name that exists. `python -m simpo_jax.main --help` prints this
list, too, and `config.json` in a run's workdir has the values that it had.
"""


def reference() -> str:
  """The text of the page."""
  parts = [_BEGINNING]
  groups = {field.name: field.default_factory for field in dataclasses.fields(Settings)}
  for group, fields in itertools.groupby(FIELDS.values(), lambda field: field.group):
    about = groups[group].__doc__ if group else "What belongs to no group."
    parts.append(f"\n## {group or 'General'}\n\n{about}\n")
    parts.append("| field | default | meaning | values |\n|---|---|---|---|")
    for field in fields:
      cells = (f"`{field.name}`", _code(field.default), _plain(field.meaning), _values(field))
      parts.append(f"| {' | '.join(cells)} |")
  return "\n".join(parts) + "\n"


def _values(field: Field) -> str:
  if field.choices:
    return ", ".join(f"`{choice}`" for choice in field.choices)
  if field.element:
    return f"such as `{field.example}`"
  if field.low is None:
    return "`True`, `False`" if isinstance(field.default, bool) else "text"
  whole = "integer, " if isinstance(field.default, int) else ""
  return f"{whole}from {field.low:g}" + ("" if field.high is None else f" to {_number(field.high)}")


def with_new_fields(page: str) -> str:
  """docs/compatibility.md with the fields that its list lacks; none is ever taken out."""
  start = page.index("```text", page.index("## Fields of the config"))
  end = page.index("\n```", start)
  lines = page[start:end].splitlines()
  for field in FIELDS.values():
    head, name = f"{field.group}:" if field.group else "", field.name.rpartition(".")[2]
    at = next((i for i, line in enumerate(lines) if i and (line.split() or [""])[0] == head), None)
    if not head:
      at = 1
    if at is None:
      lines.append(head)
      at = len(lines) - 1
    if name not in lines[at].split():
      lines[at] += f" {name}"
  return page[:start] + "\n".join(lines) + page[end:]


def _number(value: float) -> str:
  return f"{value:,}" if isinstance(value, int) else f"{value:.7g}"


def _code(value: object) -> str:
  return f"`{value!r}`" if value != "" else '`""`'


def _plain(text: str) -> str:
  """As a table's cell: what Markdown would read as its own is escaped outside of code."""
  parts = text.replace("|", "\\|").split("`")
  parts[::2] = [re.sub(r"([<*_\[\]])", r"\\\1", part) for part in parts[::2]]
  return "`".join(parts)


if __name__ == "__main__":
  PAGE.write_text(reference())
  KEPT.write_text(with_new_fields(KEPT.read_text()))
  print(PAGE, KEPT, sep="\n")
