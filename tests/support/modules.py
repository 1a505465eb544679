"""Files of Python as modules, wherever they lie."""

import importlib.util


def load_module(path):
  """A module of the file's own name, anew with each call."""
  spec = importlib.util.spec_from_file_location(path.stem, path)
  assert spec and spec.loader, path
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module
