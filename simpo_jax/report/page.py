"""The page: runs' data into one HTML file that needs nothing else.

Whatever comes from a run goes into JSON data blocks, which browsers do not execute, with `<`
escaped, or into base64. The script puts it on the page as text alone. The page's own policy
lets run the one script whose hash it names, and fetches nothing.
"""

import base64
import contextlib
import datetime
import hashlib
import html
import json
import os
import pathlib
import stat
from collections.abc import Iterator, Sequence
from importlib import resources
from typing import Any

from simpo_jax import storage
from simpo_jax.errors import UserError
from simpo_jax.report.collect import Collected, collect
from simpo_jax.report.samples import Generation, pack
from simpo_jax.storage import temporary
from simpo_jax.storage.paths import brief

MAX_BYTES = 96 * 2**20  # of packed texts
_SCRIPTS = (
  "base.js", "facts.js", "chart.js", "curves.js", "timeline.js", "tables.js", "diff.js", "texts.js",
  "samples.js", "main.js",
)  # fmt: skip


def write_report(
  folders: Sequence[storage.Path],
  out: pathlib.Path,
  max_bytes: int = MAX_BYTES,
  known: dict[Any, Generation] | None = None,
) -> None:
  """Writes the report of one or more workdirs: a file whole or not at all, else what `is_stream`.

  Args:
    folders: the workdirs.
    max_bytes: packed text that it takes; the rest is left out and named.
    known: of one workdir, for the next call with the same; see `collect`.

  Raises:
    UserError: a folder is no workdir.
    OSError: the file cannot be written.
  """
  stream, share = is_stream(out), max_bytes // len(folders)
  runs = [collect(folder, share, known if len(folders) == 1 else None) for folder in folders]
  with open(out, "ab") if stream else temporary.replacing(out) as f:
    for piece in page(runs, labels(folders)):
      f.write(piece)


def is_stream(out: pathlib.Path) -> bool:
  """Whether `out` is to be written into as it is: a pipe, a terminal, the standard output.

  Raises:
    UserError: it is a folder, a disk, or a link to a file, which would be lost.
  """
  try:
    found = out.stat()
  except FileNotFoundError:
    found = None
  mode = found.st_mode if found else stat.S_IFREG
  if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
    return True
  with contextlib.suppress(OSError):  # there may be no standard output
    if found and os.path.samestat(found, os.fstat(1)):
      return True
  if stat.S_ISDIR(mode):
    raise UserError(f"{brief(out)} is a folder; name a file in it")
  if out.is_symlink() or not stat.S_ISREG(mode):
    what = "a link" if out.is_symlink() else "neither a file nor a pipe"
    raise UserError(f"{brief(out)} is {what}; name the file itself, or another")
  return False


def page(runs: Sequence[Collected], names: Sequence[str]) -> Iterator[bytes]:
  """The file, in pieces: first all that is seen at once, then the texts."""
  style, script = _asset("style.css"), _script()
  title = f"{', '.join(names)} · simpo_jax"
  data = {
    "runs": [{**r.run, "label": name} for r, name in zip(runs, names, strict=True)],
    "written": datetime.datetime.now(datetime.UTC).isoformat("T", "seconds"),
  }
  policy = (
    f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
    "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'"
  )
  parts = {
    "policy": html.escape(policy),
    "title": html.escape(title),
    "style": style,
    "data": embed(data),
    "script": script,
  }
  head, tail = _asset("page.html").split("<!-- texts -->")
  for name, text in parts.items():
    head = head.replace(f"<!-- {name} -->", text, 1) if name != "data" else head
  before, after = head.split("<!-- data -->")
  yield before.encode()
  yield parts["data"].encode(errors="replace")
  yield after.encode()
  for number, run in enumerate(runs):
    yield from _block(f"r{number}-index", pack(run.index))
    for part, text in run.prompt_parts.items():
      yield from _block(f"r{number}-q{part}", text)
    for (generation, part), text in run.parts.items():
      yield from _block(f"r{number}-g{generation}-p{part}", text)
  yield tail.encode()


def embed(value: Any) -> str:
  """JSON for a `script` element, which nothing in it can end."""
  text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
  return text.replace("<", "\\u003c")


def labels(folders: Sequence[storage.Path]) -> list[str]:
  """A short name of each run, no two the same."""
  names = [pathlib.Path(os.path.abspath(f)).name for f in folders]
  if len(set(names)) == len(names):
    return names
  longer = ["/".join(pathlib.Path(os.path.abspath(f)).parts[-2:]) for f in folders]
  if len(set(longer)) == len(longer):
    return longer
  return [f"{n} {name}" for n, name in enumerate(names, start=1)]


def _block(name: str, packed: bytes) -> Iterator[bytes]:
  yield f'<script type="text/plain" id="{name}">'.encode()
  yield packed
  yield b"</script>\n"


def _script() -> str:
  body = "\n".join(_asset(name) for name in _SCRIPTS)
  return f'(() => {{\n"use strict";\n{body}}})();\n'


def _hash(text: str) -> str:
  """As a content security policy names an inline script or style."""
  return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
  return (resources.files("simpo_jax.report") / "assets" / name).read_text(encoding="utf-8")
