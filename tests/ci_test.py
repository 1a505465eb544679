"""The files that CI is made of: what linters say of them, and what they promise each other."""

import pathlib
import re
import shutil
import subprocess
import sys

import pytest
import yaml

from support.folders import ROOT
from support.modules import load_module

SCRIPTS = [".ci/common.sh", ".ci/check", ".ci/run", ".ci/long", ".ci/release"]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def tool(name):
  """The path of what the dev extra brings; skips the test where it is not."""
  path = shutil.which(name, path=pathlib.Path(sys.executable).parent)
  return path or pytest.skip(f"there is no {name} in this environment")


def test_shellcheck():
  done = subprocess.run(
    [tool("shellcheck"), "-x", *SCRIPTS], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stdout


def test_actionlint():
  """Syntax, and types of expressions; that a mistake is found shows that it looks."""
  actionlint = tool("actionlint")
  done = subprocess.run([actionlint, *WORKFLOWS], capture_output=True, text=True)
  assert WORKFLOWS and done.returncode == 0, done.stdout
  wrong = WORKFLOWS[0].read_text().replace("matrix.python", "matrix.pyhton")
  done = subprocess.run([actionlint, "-"], input=wrong, capture_output=True, text=True)
  assert done.returncode == 1 and "pyhton" in done.stdout


def test_the_workflow_runs_ci_on_the_default_python_and_the_newest():
  [workflow] = WORKFLOWS
  job = yaml.safe_load(workflow.read_text())["jobs"]["run"]
  [newest] = re.findall(r"^newest=(\S+)", (ROOT / SCRIPTS[0]).read_text(), re.M)
  [oldest] = re.findall(r'python_requires=">=([\d.]+)"', (ROOT / "setup.py").read_text())
  assert job["strategy"]["matrix"]["python"] == [oldest, newest]
  assert job["steps"][-1]["run"] == ".ci/run"


def test_hooks_are_tools_of_the_dev_extra():
  config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
  [repo] = config["repos"]
  assert repo["repo"] == "local"
  for hook in repo["hooks"]:
    assert hook["language"] == "system" and tool(hook["entry"].split()[0])


def test_tiers():
  """`-m quick` is part of the README's command, and that of `.ci/long`; of three files."""
  found = {}
  files = [f"tests/{name}_test.py" for name in ("checkpoint/chaos", "distributed/data", "ci")]
  for name, options in {"quick": ["-m", "quick"], "default": [], "all": ["-m", ""]}.items():
    command = [sys.executable, "-m", "pytest", "--collect-only", "-n0", *options, *files]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    found[name] = [f"{file}::" in done.stdout for file in files]
  assert found == {
    "quick": [False, False, True],
    "default": [False, True, True],
    "all": [True, True, True],
  }
  assert "--junitxml" in (ROOT / ".ci/long").read_text()
  assert re.search(r"\$pytest -m '' ", (ROOT / ".ci/long").read_text())


# --- constraints ---------------------------------------------------------------------------


@pytest.fixture
def constraints():
  return load_module(ROOT / ".ci" / "constraints.py")


@pytest.mark.parametrize("path", sorted((ROOT / "constraints").glob("*.txt")), ids=lambda p: p.name)
def test_a_constraints_file_is_versions_alone(constraints, path):
  """No path, no URL, no build of this machine's; and nothing that setup.py does not admit."""
  packaging = pytest.importorskip("packaging.requirements")
  found = constraints.parse(path.read_text())
  for name, version in found.items():
    assert constraints.normal(name) == name and re.fullmatch(r"[0-9][0-9a-z.]*", version), name
  assert path.read_text() == constraints.render(found, _python(path))
  wanted = re.findall(r'"([a-z][\w.-]*(?:\[\w+\])?[<>=!~][^";]*)"', (ROOT / "setup.py").read_text())
  assert len(wanted) > 10
  for requirement in map(packaging.Requirement, wanted):
    version = found.get(constraints.normal(requirement.name))
    assert version is None or requirement.specifier.contains(version), requirement


def _python(path):
  [version] = re.findall(r"^# What Python (\S+) had", path.read_text(), re.M)
  return version


def test_differences_are_told(constraints):
  known = constraints.parse("# a comment\njax==0.10.2\ntorch==2.13.0\nabsl-py==2.0\n")
  here = {"jax": "0.12.0", "torch": "2.13.0", "peft": "0.21"}
  assert constraints.differences(known, here) == [
    "jax 0.12.0 (constraints: 0.10.2)",
    "peft 0.21 (constraints: none)",
  ]


def test_what_is_installed_has_no_local_part(constraints):
  found = constraints.installed()
  assert {"jax", "pytest", "orbax-checkpoint"} <= found.keys()
  assert not found.keys() & {"simpo-jax", "pip"}
  assert not any("+" in version for version in found.values())


# --- the table -----------------------------------------------------------------------------

JUNIT = """<?xml version="1.0"?><testsuites><testsuite>
<testcase classname="tests.data.pairs_test" name="a" time="8.0"/>
<testcase classname="tests.data.row_formats_test" name="b" time="4.4"/>
<testcase classname="tests.checkpoint.chaos_test.TestClass" name="c" time="{chaos}"/>
<testcase classname="tests.distributed.runs_test" name="d" time="0.1"><skipped/></testcase>
<testcase classname="tests.ci_test" name="e[x.y]" time="1.2"/>
<testcase classname="" name="tests.train.loss_test" time="0.3"/>
</testsuite></testsuites>"""


def test_seconds_by_folder(tmp_path):
  paths = []
  for name, chaos in (("all", "50.0"), ("quick", "0")):
    paths.append(tmp_path / f"{name}.xml")
    paths[-1].write_text(JUNIT.format(chaos=chaos))
  assert load_module(ROOT / ".ci" / "seconds.py").table(paths).splitlines() == [
    "| folder | all: tests | seconds | quick: tests | seconds |",
    "|---|---|---|---|---|",
    "| `tests/checkpoint` | 1 | 50 | 1 | 0 |",
    "| `tests/data` | 2 | 12 | 2 | 12 |",
    "| the others | 2 | 2 | 2 | 2 |",
    "| all | 5 | 64 | 5 | 14 |",
  ]
