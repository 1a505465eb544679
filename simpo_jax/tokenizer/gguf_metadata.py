"""A GGUF's tokenizer where torch is not installed.

Transformers asks for torch on the way to a tokenizer although no tensor is read. Where torch is
missing, the two places that ask for it get what they need from the gguf package.
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
  """Lets `AutoTokenizer.from_pretrained(..., gguf_file=...)` work where torch is not installed."""
  if importlib.util.find_spec("torch") is not None:
    yield
    return
  # "PyTorch was not found": it is not missed here.
  os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
  utils: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
  reader = types.ModuleType(_READER)
  vars(reader)["read_gguf_metadata"] = read_metadata
  asks = utils.is_torch_available
  sys.modules[_READER], utils.is_torch_available = reader, lambda: True
  try:
    yield
  finally:
    del sys.modules[_READER]
    utils.is_torch_available = asks


def read_metadata(
  path: str, string_arrays: Container[str] = ()
) -> tuple[dict[str, Any], tuple[str, ...]]:
  """A GGUF's fields and the names of its tensors, as transformers' function of this kind has them.

  Args:
    path: a file whose header has been checked (`gguf_header.check_header`).
    string_arrays: fields whose arrays of strings are wanted; of others the length is given.
  """
  reader = gguf.GGUFReader(path)
  fields = {
    name: len(field.data) if _is_strings(field) and name not in string_arrays else field.contents()
    for name, field in reader.fields.items()
    if not name.startswith("GGUF.")  # the header's own numbers
  }
  return fields, tuple(tensor.name for tensor in reader.tensors)


def _is_strings(field: gguf.ReaderField) -> bool:
  return field.types == [gguf.GGUFValueType.ARRAY, gguf.GGUFValueType.STRING]
