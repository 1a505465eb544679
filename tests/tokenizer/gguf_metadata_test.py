"""The tokenizer in a GGUF needs no torch, and is the same without."""

import hashlib
import subprocess
import sys

import pytest
import transformers

from simpo_jax.tokenizer.gguf_metadata import read_metadata, without_torch
from support.real_model import smollm2_gguf

# A module that is None in sys.modules is one that is not installed.
_WITHOUT_TORCH = """
import hashlib, pathlib, sys
sys.modules["torch"] = None
from simpo_jax.tokenizer.gguf_metadata import without_torch
path = pathlib.Path(sys.argv[1])
with without_torch():
  from transformers import AutoTokenizer
  hf = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
text = hf.backend_tokenizer.to_str() + str(hf.chat_template) + str(hf.special_tokens_map)
print(type(hf).__name__, hashlib.sha256(text.encode()).hexdigest())
"""


@pytest.mark.slow
def test_the_tokenizer_is_that_which_transformers_reads_with_torch():
  pytest.importorskip("torch")
  path = smollm2_gguf()
  hf = transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
  text = hf.backend_tokenizer.to_str() + str(hf.chat_template) + str(hf.special_tokens_map)
  expected = f"{type(hf).__name__} {hashlib.sha256(text.encode()).hexdigest()}"
  child = subprocess.run(
    [sys.executable, "-c", _WITHOUT_TORCH, str(path)], capture_output=True, text=True
  )
  assert child.returncode == 0, child.stderr
  assert child.stdout.split() == expected.split()
  assert "PyTorch" not in child.stderr


@pytest.mark.parametrize("arrays", [(), ("tokenizer.ggml.tokens", "tokenizer.ggml.merges")])
def test_metadata_is_what_transformers_reads(arrays):
  path = str(smollm2_gguf())
  reader = pytest.importorskip("transformers.integrations.gguf.reader")
  fields, names = read_metadata(path, arrays)
  expected_fields, expected_names = reader.read_gguf_metadata(path, arrays)
  assert fields == expected_fields and set(names) == set(expected_names)


def test_where_torch_is_nothing_is_replaced():
  pytest.importorskip("torch")
  before = dict(sys.modules)
  with without_torch():
    assert sys.modules == before
