"""What tests of all folders use: their platform, their order, fixtures, and marks."""

import os

import pytest
from jaxtyping import install_import_hook

from support import tiers

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The packages of the compiled program: every call checks what its annotations say, the letters of
# shapes included. An int is a float, too, as PEP 484 has it.
CHECKED = ("models", "train", "generate", "program", "kernels")
CHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
install_import_hook([f"simpo_jax.{name}" for name in CHECKED], CHECKER)

# The marks of tests that ask for a fixture.
MARKS = {"one_executable": "program", "emulator": "services", "moto": "services"}
COSTLY = ("slow", "program", "model", "hosts", "tpu_compile", "browser", "services")
# A file's tests share what it compiles and run in one process. What takes longest starts first:
# side by side with the others, a long file that starts last would be waited for.
LONGEST = (
  "distributed/runs_test.py",
  "distributed/drills_test.py",
  "program/llama3_v5p_test.py",
  "program/one_program_test.py",
  "models/lora_test.py",
  "checkpoint/hosts_test.py",
  "checkpoint/resume_test.py",
  "checkpoint/faults_test.py",
  "data/stream_test.py",
  "train/smollm2_test.py",
  "generate/smollm2_test.py",
  "models/smollm2_test.py",
  "export/export_test.py",
  "generate/generate_test.py",
  "train/fsdp_test.py",
  "plan/plan_test.py",
)


def pytest_configure(config):
  """Before any test is imported."""
  chosen = config.option.markexpr
  tiers.everything = not chosen or ("slow" in chosen and "not slow" not in chosen)


def pytest_collection_modifyitems(items):
  """The longest files first; marks by fixtures; `quick` is what has no other mark."""
  places = {name: place for place, name in enumerate(LONGEST)}
  items.sort(key=lambda item: places.get("/".join(item.path.parts[-2:]), len(LONGEST)))
  for item in items:
    for name in MARKS.keys() & set(item.fixturenames):
      item.add_marker(MARKS[name])
    if not any(item.get_closest_marker(name) for name in COSTLY):
      item.add_marker("quick")


@pytest.fixture(scope="module")
def one_executable():
  """Runs of the same program share it."""
  from support.shared_programs import share_programs

  undo = share_programs()
  yield
  undo()


@pytest.fixture
def before_launch(monkeypatch):
  """`before_launch(number, act)`: has `act()` called before the launch of that number."""
  from simpo_jax.runtime.launcher import Launcher

  launch, acts = Launcher.__call__, {}

  def wrapped(self, *args, **kwargs):
    if act := acts.pop(len(self.log), None):
      act()
    return launch(self, *args, **kwargs)

  monkeypatch.setattr(Launcher, "__call__", wrapped)
  return acts.__setitem__


@pytest.fixture(scope="module")
def emulator():
  """A running server of gs:// with an empty bucket, to which clients are led."""
  from support.buckets import gcs_emulator

  with gcs_emulator() as server:
    yield server


@pytest.fixture(scope="module")
def moto():
  """The same for s3://."""
  from support.buckets import s3_emulator

  with s3_emulator() as server:
    yield server
