"""Asks others for the ids that tests/tokenizer/gguf_split_test.py expects; writes their digests.

llama.cpp is asked by the HTTP server of the wheel xllamacpp, at /tokenize, without special tokens.
The makers' own tokenizers are tiktoken with the patterns that Meta, Alibaba and Mistral publish
in their packages, on the same small vocabulary. In an environment of its own:

  pip install xllamacpp tiktoken numpy regex
  pip install --no-deps llama-models dashscope mistral-common
  cd tests && python -m support.make_split_ids SMOLLM2.gguf PAIRS.json golden/split_ids.json
"""

import importlib.metadata
import json
import pathlib
import re
import sys
import tempfile
import unicodedata
import urllib.request

from support.split_texts import WORDS, digest, rows, small_gguf, spelling, vocabulary

_BETWEEN = 0  # <s>, or SmolLM2's <|endoftext|>
NAMES = (
  "default", "gpt-2", "a.x-4.0", "mellum", "trillion", "smollm", "refact", "starcoder",
  "minerva-7b", "llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0", "smaug-bpe",
  "dbrx", "qwen2", "deepseek-r1-qwen", "megrez", "kormo", "f2llmv2", "tekken",
)  # fmt: skip


def llama_cpp(path: pathlib.Path, texts: list[str]) -> list[list[int]]:
  """llama.cpp's ids of each text, with the file's vocabulary."""
  import xllamacpp  # pyright: ignore[reportMissingImports]  # in no extra

  params = xllamacpp.CommonParams()
  params.model.path, params.n_ctx, params.warmup = str(path), 64, False
  server = xllamacpp.Server(params)
  # One request takes many texts and ids; an id that no text gives stands between the texts.
  content = [part for text in texts for part in (text, _BETWEEN)]
  asked = {"content": content, "add_special": False, "parse_special": False}
  request = urllib.request.Request(
    server.listening_address + "/tokenize",
    json.dumps(asked).encode(),
    {"Content-Type": "application/json"},
  )
  with urllib.request.urlopen(request) as answer:
    found = [[]]
    for token in json.load(answer)["tokens"]:
      if token == _BETWEEN:
        found.append([])
      else:
        found[-1].append(token)
  assert len(found) == len(texts) + 1
  return found[:-1]


def makers_patterns() -> dict[str, str]:
  """The patterns in the makers' packages, read as text: their code is not run."""

  def text(package: str, end: str) -> str:
    files = importlib.metadata.files(package) or ()
    return next(f for f in files if str(f).endswith(end)).read_text(encoding="utf-8")

  [llama] = re.findall(r'pat_str = r"(.*)"  # noqa', text("llama-models", "llama3/tokenizer.py"))
  [qwen] = re.findall(r'PAT_STR = r"""(.*?)"""', text("dashscope", "qwen_tokenizer.py"))
  tekken = json.loads(text("mistral-common", "tekken_240718.json"))["config"]["pattern"]
  return {"llama-bpe": llama, "qwen2": qwen, "tekken": tekken}


def maker(name: str, pattern: str):
  """A function from a text to a maker's ids.

  tiktoken knows no merges: what is in its vocabulary can be made. So Qwen's, whose Hugging Face
  tokenizer goes by merges, is without the words that none makes.
  """
  import tiktoken  # pyright: ignore[reportMissingImports]  # in no extra

  byte = {c: b for b, c in enumerate(spelling())}
  tokens = vocabulary()[0][2 : -len(WORDS) if name == "qwen2" else None]
  ranks = {bytes(byte[c] for c in token): rank for rank, token in enumerate(tokens)}
  encoding = tiktoken.Encoding("", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})

  def ids(text: str) -> list[int]:
    text = unicodedata.normalize("NFC", text) if name == "qwen2" else text
    return [i + 2 for i in encoding.encode_ordinary(text)]

  return ids


def main(smollm2: str, data: str, out: str) -> None:
  """Writes the file: digests of rows in one string, once for all names that have the same."""
  texts = rows(pathlib.Path(data))
  found = {}
  found["SmolLM2"] = llama_cpp(pathlib.Path(smollm2), texts)
  with tempfile.TemporaryDirectory() as folder:
    for name in NAMES:
      path = pathlib.Path(folder) / f"{name}.gguf"
      path.write_bytes(small_gguf(name))
      found[name] = llama_cpp(path, texts)
  for name, pattern in makers_patterns().items():
    ids = maker(name, pattern)
    found[f"{name} by its maker"] = [ids(text) for text in texts]
  found = {name: "".join(map(digest, ids)) for name, ids in found.items()}
  kinds = list(dict.fromkeys(found.values()))
  packages = ("xllamacpp", "tiktoken", "llama-models", "dashscope", "mistral-common")
  written = {
    "made with": {name: importlib.metadata.version(name) for name in packages},
    "kind of": {name: kinds.index(value) for name, value in found.items()},
    "kinds": kinds,
  }
  pathlib.Path(out).write_text(json.dumps(written, indent=1) + "\n")


if __name__ == "__main__":
  main(*sys.argv[1:])
