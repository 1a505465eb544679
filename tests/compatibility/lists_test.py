"""docs/compatibility.md lists what users rely on: each is there, and what is new is listed."""

import ast
import contextlib
import importlib
import io
import json
import re
import runpy
import sys
import warnings

import jax
import numpy as np
import pytest
from absl import app, flags

from simpo_jax import run as loop
from simpo_jax.config import default_config, flatten
from simpo_jax.errors import INTERRUPTED, Interrupted, UserError
from simpo_jax.import_config.translate import Translation
from simpo_jax.import_config.writing import config_text
from simpo_jax.runtime.launcher import Launcher
from support.commands import INTERNAL, PROGRAMS, fresh_flags
from support.folders import DOCS, ROOT
from support.runs_in_process import Lost, lose

pytestmark = pytest.mark.usefixtures("one_executable")

INPUTS = ROOT / "tests" / "compatibility" / "e143b35"
LAUNCHERS = sorted(
  path for path in (ROOT / "launch").glob("*.py") if "\nif __name__ == " in path.read_text()
)
# Of run.json, what has names of its own kind inside: of packages, axes, modes, data.
OPEN = ("versions", "devices.mesh", "peak_bytes", "memory.by_mode", "data", "tracking")


def listed(heading):
  """The words of the list under a heading of the page, by the word before a colon if any."""
  page = (DOCS / "compatibility.md").read_text()
  section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
  lines = re.findall(r"```text\n(.*?)```", section, re.S)[0].splitlines()
  found = {}
  for line in lines:
    name, colon, rest = line.partition(": ")
    words = (rest if colon else line).split()
    assert not found.get(name if colon else "", set()) & set(words), f"{heading}: twice in {line}"
    found.setdefault(name if colon else "", set()).update(words)
  return found


def check(heading, there):
  """Compares a list, {name: words}, with what there is."""
  promised = listed(heading)
  gone = {n: sorted(promised[n] - there.get(n, set())) for n in promised}
  new = {n: sorted(there[n] - promised.get(n, set())) for n in there}
  assert not any(gone.values()), f"{heading}: these are gone, and users rely on them: {gone}"
  assert not any(new.values()), f"{heading}: add these to docs/compatibility.md: {new}"


def program_flags(module):
  with fresh_flags(), pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
    warnings.simplefilter("ignore", RuntimeWarning)  # of what other tests have imported already
    patch.setattr(app, "run", lambda *_, **__: None)
    patch.setattr(sys, "argv", [module])
    runpy.run_module(module, run_name="__main__")
    return {f"--{name}" for name in flags.FLAGS}


def launcher_flags(path):
  out = io.StringIO()
  with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
    patch.syspath_prepend(str(path.parent))
    for name in ("common", "jobset"):  # bench/ has one, too
      patch.delitem(sys.modules, name, raising=False)
    with pytest.raises(SystemExit):
      runpy.run_path(str(path), run_name=path.name)["main"](["--help"])
    for name in ("common", "jobset"):
      sys.modules.pop(name, None)
  return set(re.findall(r"^  (?:-h, )?(--[\w-]+)", out.getvalue(), re.M)) - {"--help"}


def test_commands_and_their_flags():
  there = {name: program_flags(name) for name in PROGRAMS if not name.endswith(INTERNAL)}
  check("Commands and their flags", there)


def test_launchers_and_their_flags():
  there = {f"launch/{path.name}": launcher_flags(path) for path in LAUNCHERS}
  check("Launchers and their flags", there)


def test_exit_codes():
  there = {"0", str(UserError.exit_code), str(Interrupted.exit_code), str(INTERRUPTED)}
  check("Exit codes", {"": there})


def test_fields_of_the_config():
  there = {}
  for name in flatten(default_config()):
    group, _, field = name.rpartition(".")
    there.setdefault(group, set()).add(field)
  check("Fields of the config", there)


def imports(text):
  """ "module.name" of all that a Python text imports from this package."""
  found = set()
  for node in ast.walk(ast.parse(text)):
    if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("simpo_jax"):
      found |= {f"{node.module}.{alias.name}" for alias in node.names}
  return found


def test_import_paths():
  texts = [p.read_text() for p in (*ROOT.glob("configs/*.py"), *INPUTS.glob("*.py"))]
  for path in ROOT.glob("notebooks/*.ipynb"):
    cells = json.loads(path.read_text())["cells"]
    code = ["".join(c["source"]) for c in cells if c["cell_type"] == "code"]
    texts += [re.sub(r"^[!%].*$", "", text, flags=re.M) for text in code]
  for path in (*ROOT.glob("*.md"), *DOCS.glob("*.md")):
    texts += re.findall(r"```python\n(.*?)```", path.read_text(), re.S)
  texts.append(config_text(Translation({}, [], [], ""), "a recipe", "config.py"))
  check("Import paths", {"": set().union(*map(imports, texts))})
  for name in listed("Import paths")[""]:
    module, _, attribute = name.rpartition(".")
    assert hasattr(importlib.import_module(module), attribute), name


# --- what runs leave ------------------------------------------------------------------------


def config():
  """A run that leaves a file of each kind."""
  c = default_config()
  c.model.source = f"random:{INPUTS / 'llama'}"
  c.data.train, c.data.dir = ("tfds:pairs",), str(INPUTS / "data")
  c.data.max_length, c.data.max_prompt_length, c.data.row_length = 64, 40, 128
  c.data.max_skip_fraction = 0.5
  c.train.steps, c.train.batch_size = 4, 2
  c.train.lora_rank, c.train.ema_decay, c.train.max_bad_steps = 2, 0.5, 1
  c.generate.at_steps, c.generate.prompt_list, c.generate.logprobs = (3,), ("Why?",), True
  c.generate.max_new_tokens, c.generate.page_size = 4, 16
  c.evaluate.every = 3
  c.profile.steps = (3, 3)
  c.export.at_end = True
  return c


class Left:
  """Names of files, and the content of those that have keys, of all states of a workdir."""

  def __init__(self):
    self.files, self.rows, self.records = set(), {}, []

  def add(self, folder):
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
      name = re.sub(r"\d{4,}", "N", str(path.relative_to(folder)))
      top = name.split("/")[0]
      if top in ("tensorboard", "profile", "export", "adapter", "attempts", "checkpoints"):
        # Their files are of others' formats, or once more those of a run.
        parts = name.split("/")
        own = name if name.endswith("/simpo_jax.json") else "/".join(parts[: len(parts) > 2 and 2])
        name = own if top in ("checkpoints", "attempts") else top
        name = name if name.endswith(".json") else name + "/"
      self.files.add(name)
      if path.suffix == ".jsonl" and "attempts" not in path.parts:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        self.rows.setdefault(re.sub(r"\d{4,}", "N", path.name), []).extend(rows)
    self.records.append(json.loads((folder / "run.json").read_text()))


def put(like, values):
  return jax.make_array_from_callback(like.shape, like.sharding, lambda index: values[index])


def poisoned(launch, self, state, *args, **kwargs):
  """A launch that finds a weight that is NaN; what is to be trained on is as it was."""
  before, like = jax.tree.map(np.array, state), jax.eval_shape(lambda: state)
  like = jax.tree.map(
    lambda x, of: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=of.sharding), like, state
  )
  norm = put(like.params["final_norm"], np.full_like(before.params["final_norm"], np.nan))
  state = state._replace(params={**state.params, "final_norm": norm})
  _, report, seconds = launch(self, state, *args, **kwargs)
  return jax.tree.map(put, like, before), report, seconds


@pytest.fixture(scope="module")
def left(tmp_path_factory, one_executable):  # noqa: F811
  """Of a run that was lost before it could save, began anew, failed and went on; and of a copy."""
  found, folder = Left(), tmp_path_factory.mktemp("left")
  with pytest.MonkeyPatch.context() as patch:
    launch, acts = Launcher.__call__, {}

    def wrapped(self, state, *args, **kwargs):
      if act := acts.get(len(self.log)):
        return act(launch, self, state, *args, **kwargs)
      return launch(self, state, *args, **kwargs)

    patch.setattr(Launcher, "__call__", wrapped)
    acts[1] = lambda *args, **kwargs: lose()
    with pytest.raises(Lost):
      loop.run(config(), str(folder / "run"))
    acts.update({1: poisoned, 2: poisoned})  # one more than is allowed
    with pytest.raises(UserError, match="not finite"):
      loop.run(config(), str(folder / "run"))
    found.add(folder / "run")
    acts.clear()
    patch.setenv("LIBTPU_INIT_ARGS", "--other")  # of another machine
    loop.run(config(), str(folder / "run"))
    found.add(folder / "run")
    c = config()
    c.checkpoint.init_from = str(folder / "run")
    loop.run(c, str(folder / "next"))
    found.add(folder / "next")
  return found


def test_files_of_a_workdir(left):
  check("Files of a workdir", {"": left.files})


def test_metric_names(left):
  there = {}
  for row in left.rows["metrics.jsonl"]:
    there.setdefault(row["mode"], set()).update(row)
  check("Metrics", there)


def test_keys_of_samples(left):
  check("Samples", {"": set().union(*left.rows["host_N_of_N.jsonl"])})


def test_keys_of_evaluations(left):
  check("Held-out pairs", {"": set().union(*left.rows["pairs.jsonl"])})


def keys(value, path=""):
  """ "timings.compile" and so on; of lists, what their elements have."""
  if path in OPEN or not isinstance(value, (dict, list)):
    return {path}
  if isinstance(value, list):
    inside = set().union(*(keys(v, path) for v in value))
    return inside or {path}
  return set().union(*(keys(v, f"{path}.{name}".lstrip(".")) for name, v in value.items()))


def test_keys_of_the_record(left):
  found = set().union(*map(keys, left.records))
  whole = {name for name in found if not any(n.startswith(f"{name}.") for n in found)}
  check("run.json", {"": whole})
