"""What comes with a model, a dataset or a checkpoint runs no code and leads out of no folder."""

import ast
import hashlib
import json
import pathlib
import subprocess
import sys

import pytest

from fuzz_models_test import CONFIG, TOKENIZER_CONFIG, TOKENIZER_FOLDER, WEIGHTS
from simpo_jax import checkpoint, weights
from simpo_jax.data import hub
from simpo_jax.data.building import Target, build
from simpo_jax.data.chunks import find_files
from simpo_jax.data.prepared import open_prepared, verify
from simpo_jax.data.tokenizer import load_tokenizer
from simpo_jax.errors import UserError
from simpo_jax.paths import leaves

REPO = pathlib.Path(__file__).resolve().parent.parent

# --- no pickle ---------------------------------------------------------------------------

_MODULES = {"pickle", "cPickle", "_pickle", "pickle5", "marshal", "shelve", "dill", "cloudpickle",
            "joblib", "jsonpickle"}  # fmt: skip
_LOADS = {"load", "unsafe_load", "full_load", "load_all", "unsafe_load_all", "full_load_all"}


def unsafe(source):
  """The lines of Python source that could make an object of any type out of a file."""
  found = []
  for node in ast.walk(ast.parse(source)):
    if isinstance(node, (ast.Import, ast.ImportFrom)):
      names = [a.name for a in node.names]
      module = getattr(node, "module", None) or ""
      tops = {name.split(".")[0] for name in [*names, module]}
      if tops & _MODULES or (module == "torch" and "load" in names):
        found.append(node.lineno)
    elif isinstance(node, ast.Call):
      name = ast.unparse(node.func)
      options = {k.arg: ast.unparse(k.value) for k in node.keywords}
      called = name.rpartition(".")[2]
      if (
        options.get("allow_pickle", "False") != "False"
        or options.get("trust_remote_code", "False") != "False"
        or (name.startswith("torch.") and called == "load")
        or (name.startswith("yaml.") and called in _LOADS)
        or called in ("read_pickle", "to_pickle", "fromfile_pickle")
        or name in ("eval", "exec", "__import__")
      ):
        found.append(node.lineno)
  return found


@pytest.mark.parametrize(
  "source",
  (
    "import pickle",
    "import os, dill.source",
    "def f():\n  from cloudpickle import loads",
    "from torch import load",
    "torch.load('x', weights_only=True)",
    "torch.hub.load('x')",
    "np.load('x', allow_pickle=True)",
    "np.load('x', allow_pickle=maybe)",
    "yaml.load(text)",
    "yaml.unsafe_load(text)",
    "pd.read_pickle('x')",
    "AutoTokenizer.from_pretrained('x', trust_remote_code=True)",
    "eval(text)",
  ),
)
def test_the_search_finds(source):
  assert unsafe(source)


def test_no_pickle_in_our_sources():
  folders = ("simpo_jax", "kernels", "launch", "bench", "configs", "tests")
  files = [REPO / "setup.py", *(p for f in folders for p in (REPO / f).rglob("*.py"))]
  assert len(files) > 100
  assert not {str(p): lines for p in files if (lines := unsafe(p.read_text()))}
  assert not unsafe("np.load('x')\nnp.load('x', allow_pickle=False)\nyaml.safe_load(x)\nx.load()")


# --- no code of a model's or a dataset's -------------------------------------------------

_EVIL = """import pathlib
pathlib.Path(__file__).with_name("mark").touch()
from transformers import LlamaConfig, PreTrainedTokenizerFast
class Evil(PreTrainedTokenizerFast): pass
class EvilConfig(LlamaConfig): pass
"""
_IN_CONFIG = {"auto_map": {"AutoConfig": "evil.EvilConfig", "AutoTokenizer": ["evil.Evil", None]}}
_IN_TOKENIZER = {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}


@pytest.mark.parametrize(
  ("config", "tokenizer"),
  (
    (_IN_CONFIG, {}),
    ({**_IN_CONFIG, "model_type": "evil"}, {}),
    ({}, _IN_TOKENIZER),
    ({}, {"tokenizer_class": "Evil"}),
    (_IN_CONFIG, {**_IN_TOKENIZER, "tokenizer_class": "Evil"}),
    ({"tokenizer_class": "evil.Evil"}, {"tokenizer_class": None}),
    ({**_IN_CONFIG, "model_type": "evil"}, {**_IN_TOKENIZER, "tokenizer_class": "Evil"}),
  ),
)
def test_a_models_code_is_never_run(tmp_path, monkeypatch, config, tokenizer):
  files = {
    **WEIGHTS,
    **TOKENIZER_FOLDER,
    "config.json": json.dumps({**CONFIG, **config}).encode(),
    "tokenizer_config.json": json.dumps({**TOKENIZER_CONFIG, **tokenizer}).encode(),
    "evil.py": _EVIL.encode(),
  }
  for name, data in files.items():
    (tmp_path / name).write_bytes(data)
  monkeypatch.chdir(tmp_path)
  # A terminal where somebody says yes to every question.
  monkeypatch.setattr("builtins.input", lambda *_: "y")
  for read in (weights.open_model, load_tokenizer):
    try:
      read(str(tmp_path))
    except UserError as error:
      assert str(error)
  assert not (tmp_path / "mark").exists()
  monkeypatch.syspath_prepend(str(tmp_path))
  __tracebackhide__ = True
  subprocess.run([sys.executable, "evil.py"], cwd=tmp_path, check=True)
  assert (tmp_path / "mark").exists(), "it would have left a mark"
