"""Seconds by folder of tests, from pytest's --junitxml: the table in docs/developing.md.

  python .ci/seconds.py LONG.xml [QUICK.xml ...]

One column a file. Seconds are those in which a
test, with the fixtures that it was the first to ask for, was at work: with `-n 2`, about twice
what the clock shows. Folders below 10 seconds in all columns are summed up in one row.
"""

import pathlib
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter

LEAST = 10  # seconds of a folder with a row of its own


def seconds(path: pathlib.Path) -> tuple[Counter[str], Counter[str]]:
  """({folder: seconds}, {folder: tests that ran}) of a junit file."""
  spent: Counter[str] = Counter()
  count: Counter[str] = Counter()
  for case in ElementTree.parse(path).iter("testcase"):
    if case.find("skipped") is None:
      # Of a module that could not be imported, the name alone has the file.
      folder = (case.get("classname") or case.get("name", "")).split(".")[1]
      spent[folder] += float(case.get("time", 0))
      count[folder] += 1
  return spent, count


def table(paths: list[pathlib.Path]) -> str:
  """The Markdown table."""
  columns = [seconds(path) for path in paths]
  folders = sorted(set().union(*(s for s, _ in columns)), key=lambda name: -columns[0][0][name])
  large = [name for name in folders if any(s[name] >= LEAST for s, _ in columns)]
  small = [name for name in folders if name not in large]
  named = [(f"`tests/{name}`", [name]) for name in large]
  named += [("the others", small), ("all", folders)]
  lines = [
    "| folder | " + " | ".join(f"{path.stem}: tests | seconds" for path in paths) + " |",
    "|---" * (1 + 2 * len(paths)) + "|",
  ]
  for title, members in named:
    cells = [
      f"{sum(count[name] for name in members)} | {sum(spent[name] for name in members):,.0f}"
      for spent, count in columns
    ]
    lines.append(f"| {title} | {' | '.join(cells)} |")
  return "\n".join(lines)


if __name__ == "__main__":
  if len(sys.argv) < 2:
    sys.exit(__doc__)
  print(table([pathlib.Path(p) for p in sys.argv[1:]]))
