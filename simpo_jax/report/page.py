"""Writes the report page: one self-contained HTML file.

Data of a run goes into JSON data blocks, which browsers do not execute, with `<` escaped, or into
base64; the script inserts it as text only. The page's Content Security Policy allows only the
script and style with its hashes, and no requests.
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

MAX_BYTES = 96 * 2**20  # default limit of the packed texts
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
  """Writes the report of one or more workdirs; a file is replaced atomically.

  Args:
    folders: the workdirs.
    out: the HTML file, or a pipe or terminal; see `is_stream`.
    max_bytes: limit for the packed texts; the report says which are left out.
    known: cache between calls for the same single workdir; see `collect`.

  Raises:
    UserError: a folder is not a workdir.
    OSError: the file cannot be written.
  """
  stream, share = is_stream(out), max_bytes // len(folders)
  runs = [collect(folder, share, known if len(folders) == 1 else None) for folder in folders]
  with open(out, "ab") if stream else temporary.atomic_write(out) as f:
    for piece in page(runs, labels(folders)):
      f.write(piece)


def is_stream(out: pathlib.Path) -> bool:
  """Returns whether `out` is written directly: a pipe, a terminal, or standard output.

  Raises:
    UserError: it is a folder, a block device, or a symlink, which would be replaced.
  """
  try:
    found = out.stat()
  except FileNotFoundError:
    found = None
  mode = found.st_mode if found else stat.S_IFREG
  if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
    return True
  with contextlib.suppress(OSError):  # standard output may be closed
    if found and os.path.samestat(found, os.fstat(1)):
      return True
  if stat.S_ISDIR(mode):
    raise UserError(f"{brief(out)} is a folder; name a file in it")
  if out.is_symlink() or not stat.S_ISREG(mode):
    what = "a link" if out.is_symlink() else "neither a file nor a pipe"
    raise UserError(f"{brief(out)} is {what}; name the file itself, or another")
  return False


def page(runs: Sequence[Collected], names: Sequence[str]) -> Iterator[bytes]:
  """Yields the HTML in pieces: first everything that is shown at once, then the packed texts."""
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
  """Returns JSON for a `script` element, escaped so that no text in it can end the element."""
  text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
  return text.replace("<", "\\u003c")


def labels(folders: Sequence[storage.Path]) -> list[str]:
  """Returns a short, unique name for each run."""
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
  """Returns the hash of an inline script or style for the Content Security Policy."""
  return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _asset(name: str) -> str:
  return (resources.files("simpo_jax.report") / "assets" / name).read_text(encoding="utf-8")
