"""The house: no import leads in a circle, device code reads no files, modules stay short."""

import ast
import functools
import re

import pytest

from support.folders import ROOT

DEVICE = ("program", "train", "generate", "kernels")
MACHINE = (
  *DEVICE, "models", "runtime", "data", "tokenizer", "checkpoint", "workdir", "distributed",
  "storage", "trackers", "loaded_model",
)  # fmt: skip
COMMANDS = (
  "chat", "compare", "demo", "export", "import_config", "plan", "prepare", "report", "sample",
)  # fmt: skip
# What reads files that somebody else wrote, or tells of a run.
READERS = (
  "data.row_files", "data.pairs", "data.prompts", "data.prepared", "tokenizer", "models.gguf",
  "models.safetensors", "models.weights", "trackers", "report", "workdir", "checkpoint",
)  # fmt: skip


OF_OTHERS = ("run_simpo.py",)  # files of other projects


@functools.cache
def modules():
  """{name below simpo_jax: path}; kernels are installed as a package of it."""
  paths = [*(ROOT / "simpo_jax").rglob("*.py"), *(ROOT / "kernels").rglob("*.py")]
  found = {}
  for path in paths:
    parts = path.relative_to(ROOT).with_suffix("").parts
    parts = parts if parts[0] == "kernels" else parts[1:]
    found[".".join(parts).removesuffix(".__init__")] = path
  return found


def imports(text):
  """Names below simpo_jax that a module imports, also inside functions and for type checkers."""
  found = set()
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("simpo_jax"):
      base = node.module.removeprefix("simpo_jax").lstrip(".")
      for alias in node.names:
        whole = f"{base}.{alias.name}".lstrip(".")
        found.add(whole if whole in modules() else base)
    elif isinstance(node, ast.Import):
      found |= {a.name.removeprefix("simpo_jax.") for a in node.names}
  return found & set(modules())


@functools.cache
def graph():
  return {name: imports(path.read_text()) - {name} for name, path in modules().items()}


def reached(name):
  """All that is imported by the import of a module, itself left out."""
  seen, waiting = set(), [name]
  while waiting:
    new = graph()[waiting.pop()] - seen
    seen |= new
    waiting += new
  return seen


def within(name, packages):
  return any(name == p or name.startswith(f"{p}.") for p in packages)


def test_the_graph_sees_what_there_is():
  assert {"run", "program.build", "kernels.paged_attention.tpu", "storage"} <= set(modules())
  assert "runtime.launcher" in graph()["run"] and "program.ledger" in reached("run")
  text = "def f():\n  from simpo_jax.data import pairs\n  import simpo_jax.storage.paths"
  assert imports(text) == {"data.pairs", "storage.paths"}


def test_no_import_leads_in_a_circle():
  assert [name for name in modules() if name in reached(name)] == []


@pytest.mark.parametrize("package", DEVICE)
def test_device_code_reads_no_files(package):
  for name in modules():
    if within(name, (package,)):
      assert [other for other in reached(name) if within(other, READERS)] == [], name


def test_the_machine_imports_no_command():
  for name in modules():
    if within(name, MACHINE):
      assert [other for other in reached(name) if within(other, COMMANDS)] == [], name


def test_no_module_is_long_and_no_folder_full():
  long = {
    name: len(path.read_text().splitlines())
    for name, path in modules().items()
    if not within(name, ("kernels",))
  }
  assert {name: lines for name, lines in long.items() if lines > 300} == {}
  folders = {path.parent for path in modules().values()}
  assert [folder for folder in folders if len(list(folder.glob("*.py"))) > 18] == []


def test_no_function_is_long():
  """But kernels, which are one loop each."""
  found = {
    f"{path.relative_to(ROOT)}: {node.name}": (node.end_lineno or 0) - node.lineno + 1
    for top in ("simpo_jax", "launch", "bench", "configs", ".ci")
    for path in (ROOT / top).rglob("*.py")
    for node in ast.walk(ast.parse(path.read_text()))
    if isinstance(node, ast.FunctionDef)
  }
  assert [name for name, lines in found.items() if lines > 60] == []


def test_docstrings_name_parameters_that_there_are():
  wrong = []
  for path in modules().values():
    for node in ast.walk(ast.parse(path.read_text())):
      if not isinstance(node, ast.FunctionDef):
        continue
      text = ast.get_docstring(node) or ""
      section = re.search(r"^Args:\n((?:  .*\n?|\n)+)", text, re.M)
      given = re.findall(r"^  (\w+(?:, \w+)*):", section[1], re.M) if section else []
      known = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
      named = {name.strip() for names in given for name in names.split(",")}
      wrong += [f"{path.relative_to(ROOT)}: {node.name}: {name}" for name in named - known]
  assert wrong == []


def test_files_that_are_named_are_there():
  """Under their path below simpo_jax/ or the repository; names alone may be of any folder."""
  tops = ("simpo_jax", "kernels", "configs", "launch", "bench", "tests")
  known = {str(p.relative_to(ROOT)) for top in tops for p in (ROOT / top).rglob("*.py")}
  wrong = []
  for path in modules().values():
    for name in re.findall(r"`((?:\w+/)*\w+\.py)`", path.read_text()):
      if not any(f"/{other}".endswith(f"/{name}") for other in known) and name not in OF_OTHERS:
        wrong.append(f"{path.relative_to(ROOT)}: {name}")
  assert wrong == []
