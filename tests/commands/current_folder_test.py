"""A command runs nothing that lies in the folder it was started in."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

from support.commands import INTERNAL, PROGRAMS
from support.folders import ROOT

M11 = f"--config={ROOT / 'configs' / 'm11.py'}"
ROW = '{"prompt": "Say.", "chosen": "It.", "rejected": "No."}\n'
# Each does all that it can before it finds something missing.
COMMANDS = {
  "main": [M11, "--workdir=.", "--config.model.source=random:."],
  "sample": ["--model=.", "--prompt=Hello?", "--out=-"],
  "chat": ["--model=."],
  "export": ["--workdir=.", "--out=out"],
  "report": ["."],
  "compare": ["--workdir=."],
  "learned": ["--workdir=."],
  "plan": [M11, "--config.model.source=random:."],
  "prepare": ["--source=pairs", "--out=made", "--workers=2"],
  "import_config": ["recipe.yaml"],
  "demo": ["--workdir=."],
}


def every_command():
  return {p.removeprefix("simpo_jax.") for p in PROGRAMS if not p.endswith(INTERNAL)}


def names():
  """Of all that is installed, and of what belongs to Python and has not been imported by it.

  That happens before anybody's code can do something about it, unless `python -P` was said.
  """
  here = [sys.executable, "-c", "import runpy, sys; print(*sys.modules)"]
  loaded = subprocess.run(here, text=True, capture_output=True, check=True, cwd="/").stdout.split()
  own = ("__main__", "simpo_jax", "kernels")
  found = {*importlib.metadata.packages_distributions(), *sys.stdlib_module_names} - {*loaded, *own}
  return sorted(name for name in found if name.isidentifier() and "__editable__" not in name)


def start(folder, module, *arguments):
  env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
  return subprocess.Popen(
    [sys.executable, "-m", f"simpo_jax.{module}", *arguments],
    cwd=folder,
    env={**env, "JAX_PLATFORMS": "cpu"},
    text=True,
    stdin=subprocess.DEVNULL,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )


def test_every_command_is_tried():
  assert every_command() == set(COMMANDS)


@pytest.mark.slow
def test_modules_of_the_current_folder_are_not_run(tmp_path):
  folder, ran = tmp_path / "model", tmp_path / "ran"
  (folder / "pairs").mkdir(parents=True)
  for name in names():
    (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write('{name} ')\n")
  (folder / "pairs" / "a.jsonl").write_text(ROW * 40)
  (folder / "recipe.yaml").write_text("loss_type: simpo\n")
  trap = [sys.executable, "-c", "import absl, jax, safetensors, csv"]
  subprocess.run(trap, cwd=folder, check=True, env={"PATH": os.environ["PATH"]})
  assert ran.read_text() == "absl jax safetensors csv ", "they lie in wait"
  ran.unlink()
  processes = {name: start(folder, name, *given) for name, given in COMMANDS.items()}
  try:
    told = {name: process.communicate(timeout=900)[0] for name, process in processes.items()}
  finally:
    for process in processes.values():
      process.kill()
  assert not ran.exists(), ran.read_text()
  codes = {name: process.returncode for name, process in processes.items()}
  assert codes == {**dict.fromkeys(COMMANDS, 2), "prepare": 0}, told
  assert (folder / "made" / "pairs" / "1.0.0" / "prepared.json").is_file()


@pytest.mark.parametrize(
  ("code", "expected"),
  [
    ("import simpo_jax", True),
    ("import sys; sys.argv = ['-m', 'x']; sys.orig_argv = ['p', '-m', 'other', 'x']", True),
    (
      "import sys; sys.argv = ['-m', 'x']; sys.orig_argv = ['p', '-m', 'simpo_jax.main', 'x']",
      False,
    ),
    ("import sys; sys.argv = ['-m']; sys.orig_argv = ['p', '-Bmsimpo_jax.chat']", False),
  ],
)
def test_only_a_command_leaves_it(tmp_path, code, expected):
  """Not a notebook, nor a program of the user's that has a __main__ of its own."""
  code += f"; sys.path[0] = {str(tmp_path)!r}" if "sys" in code else ""
  code += "; import os, simpo_jax, sys; print(sys.path[0], os.environ.get('PYTHONSAFEPATH'))"
  run = subprocess.run(
    [sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True, check=True
  )
  first, variable = run.stdout.split(" ") if run.stdout[0] != " " else ("", run.stdout[1:])
  assert (first in ("", str(tmp_path))) == expected
  assert variable.strip() == ("None" if expected else "1")


def test_a_config_file_may_import_what_lies_beside_the_command(tmp_path):
  (tmp_path / "settings.py").write_text("STEPS = -3\n")
  (tmp_path / "numpy.py").write_text("raise SystemExit('what is installed comes first')\n")
  (tmp_path / "mine.py").write_text(
    "import numpy\nimport settings\nfrom simpo_jax.config import default_config\n\n\n"
    "def get_config():\n  c = default_config()\n  c.train.steps = settings.STEPS\n  return c\n"
  )
  process = start(tmp_path, "main", "--config=mine.py")
  told = process.communicate(timeout=300)[0]
  assert process.returncode == 2 and "train.steps=-3" in told
