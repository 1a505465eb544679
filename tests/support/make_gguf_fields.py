"""Asks llama.cpp what tests/tokenizer/gguf_fields_test.py expects; writes its answers.

llama.cpp is asked by the HTTP server of the wheel xllamacpp, at /tokenize, with special tokens; for
the tokens that end an answer, by its log. In an environment of its own:

  pip install xllamacpp
  cd tests && python -m support.make_gguf_fields golden/gguf_fields.json
"""

import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import urllib.request

from support.gguf_tokenizers import CASES, byte_pieces, gguf_of, texts
from support.make_split_ids import NAMES
from support.split_texts import digest

_END = re.compile(rb"print_info: EOG token\s+= (\d+) ")


def answers(path: str, asked: list[str]) -> list[list[int]]:
  """llama.cpp's ids of each text, with BOS and EOS where it adds them."""
  import xllamacpp  # pyright: ignore[reportMissingImports]  # in no extra

  params = xllamacpp.CommonParams()
  params.model.path, params.n_ctx, params.warmup, params.verbosity = path, 64, False, 5
  server = xllamacpp.Server(params)
  found = []
  for text in asked:
    body = json.dumps({"content": text, "add_special": True, "parse_special": True})
    request = urllib.request.Request(
      server.listening_address + "/tokenize", body.encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as answer:
      found.append(json.load(answer)["tokens"])
  return found


def ask(fields: dict, asked: tuple[str, ...]) -> tuple[list[list[int]], list[int]]:
  """(ids of the texts, ids that end an answer), from a process of its own: its log has the ends."""
  with tempfile.TemporaryDirectory() as folder:
    path, out = pathlib.Path(folder, "model.gguf"), pathlib.Path(folder, "out.json")
    path.write_bytes(gguf_of(fields))
    command = [sys.executable, "-m", "support.make_gguf_fields", str(path), str(out)]
    text = json.dumps(asked).encode()
    done = subprocess.run(command, input=text, capture_output=True, check=False, timeout=60)
    if not out.exists():
      raise RuntimeError(done.stderr.decode(errors="replace")[-3000:])
    ends = {int(i) for i in _END.findall(done.stdout + done.stderr)}
    return json.loads(out.read_text()), sorted(ends)


def main(out: str) -> None:
  """Writes the file."""
  cases = {}
  for name, fields in CASES.items():
    ids, ends = ask(fields, texts())
    cases[name] = {"ids": " ".join(map(digest, ids)), "ends": ends}
  begun = {name: ask(byte_pieces(name), ("a",))[0][0][0] == 0 for name in NAMES}
  written = {
    "made with": {"xllamacpp": importlib.metadata.version("xllamacpp")},
    "begin with BOS": begun,
    "cases": cases,
  }
  pathlib.Path(out).write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
  if sys.argv[1].endswith(".gguf"):
    pathlib.Path(sys.argv[2]).write_text(json.dumps(answers(sys.argv[1], json.load(sys.stdin))))
  else:
    main(*sys.argv[1:])
