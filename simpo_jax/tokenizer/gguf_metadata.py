"""Lets transformers load the tokenizer of a GGUF file without PyTorch.

Transformers requires PyTorch to load it although no tensor is read. Where PyTorch is not installed,
its reader of metadata is replaced by one that uses the gguf package, and its check for PyTorch by
one that passes.
"""

import contextlib
import importlib.util
import os
import sys
import types
from collections.abc import Container, Iterator
from typing import Any

import gguf

_READER = "transformers.integrations.gguf.reader"


@contextlib.contextmanager
def without_torch() -> Iterator[None]:
  """Makes `AutoTokenizer.from_pretrained(..., gguf_file=...)` work without PyTorch."""
  if importlib.util.find_spec("torch") is not None:
    yield
    return
  # Suppresses the warning "PyTorch was not found".
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  utils: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
  reader = types.ModuleType(_READER)
  vars(reader)["read_gguf_metadata"] = read_metadata
  original = utils.is_torch_available
  sys.modules[_READER], utils.is_torch_available = reader, lambda: True
  try:
    yield
  finally:
    del sys.modules[_READER]
    utils.is_torch_available = original


def read_metadata(
  path: str, string_arrays: Container[str] = ()
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """Replaces transformers' `read_gguf_metadata`: returns a GGUF's fields and its tensor names.

  Args:
    path: a file whose header has been checked (`gguf_header.check_header`).
    string_arrays: names of string-array fields to return in full; others yield their length.
  """
  reader = gguf.GGUFReader(path)
  fields = {
    name: len(field.data) if _is_strings(field) and name not in string_arrays else field.contents()
    for name, field in reader.fields.items()
    if not name.startswith("GGUF.")  # version and counts of the header
  }
  return fields, tuple(tensor.name for tensor in reader.tensors)


def _is_strings(field: gguf.ReaderField) -> bool:
  return field.types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING]
