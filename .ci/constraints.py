"""Packages that were green together: constraints/pyXYZ.txt, one file per Python.

  PYTHON .ci/constraints.py diff     where this Python's environment differs from the file
  PYTHON .ci/constraints.py write    the file anew, of this Python's environment

PYTHON is that of a virtual environment with `.[dev]`. `.ci/run` and `.ci/long` install without
constraints, as a fresh machine does, and print the differences; `.ci/long --write-constraints`
writes what has just passed.
"""

import importlib.metadata
import pathlib
import re
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).resolve().parent.parent
OURS = {"pip", "setuptools", "wheel", "simpo-jax"}


def file_of(version: Sequence[int | str]) -> pathlib.Path:
  """The file of a Python, (major, minor, ...)."""
  return ROOT / "constraints" / f"py{version[0]}{version[1]}.txt"


def normal(name: str) -> str:
  """A package's name as indexes compare it."""
  return re.sub(r"[-_.]+", "-", name).lower()


def installed() -> dict[str, str]:
  """{name: version} of this environment.

  Without the local part (+cpu): which build an index offers is the machine's business, and a
  constraint without it admits all of them.
  """
  found = {normal(d.name): d.version.partition("+")[0] for d in importlib.metadata.distributions()}
  return {name: found[name] for name in sorted(found.keys() - OURS)}


def parse(text: str) -> dict[str, str]:
  """{name: version} of a constraints file."""
  lines = [line.partition("#")[0].strip() for line in text.splitlines()]
  return dict(line.split("==") for line in lines if line)


def render(found: dict[str, str], python: str) -> str:
  """The file's text."""
  head = [
    f"# What Python {python} had installed when the quick tests passed, on Linux, x86-64.",
    f"#   pip install -e '.[dev]' -c constraints/{file_of(python.split('.')).name}",
    "# Written by .ci/long --write-constraints.",
  ]
  return "\n".join([*head, *(f"{name}=={version}" for name, version in found.items()), ""])


def differences(constraints: dict[str, str], found: dict[str, str]) -> list[str]:
  """One line for each package that is installed in another version, or is not constrained."""
  other = {n: v for n, v in found.items() if constraints.get(n) != v}
  return [f"{n} {v} (constraints: {constraints.get(n, 'none')})" for n, v in other.items()]


def main(arguments: list[str]) -> None:
  """Does what the one argument says."""
  path, found = file_of(sys.version_info), installed()
  if arguments == ["write"]:
    path.parent.mkdir(exist_ok=True)
    path.write_text(render(found, ".".join(map(str, sys.version_info[:3]))))
    print(f"{path.relative_to(ROOT)}: {len(found)} packages")
  elif arguments == ["diff"]:
    constraints = parse(path.read_text()) if path.is_file() else {}
    lines = differences(constraints, found)
    print(f"{path.relative_to(ROOT)}: {len(found)} packages installed, {len(lines)} differ")
    print("".join(f"  {line}\n" for line in lines), end="")
  else:
    sys.exit(__doc__)


if __name__ == "__main__":
  main(sys.argv[1:])
