"""A trace of some steps of a run."""

import json

import jax
import pytest

from simpo_jax.config import default_config
from simpo_jax.config_check import validate
from simpo_jax.errors import UserError
from simpo_jax.program.compile_count import compile_count
from simpo_jax.run import run

pytestmark = pytest.mark.program


def config(steps):
  c = default_config()
  c.train.steps, c.train.batch_size, c.data.embedded_pairs = 4, 2, 32
  c.data.max_length, c.data.max_prompt_length = 256, 128
  c.evaluate.at_end = False
  c.profile.steps = steps
  return c


@pytest.mark.slow
def test_the_steps_asked_for_are_traced_and_nothing_else_is_compiled(tmp_path):
  before = compile_count()
  _, folder = run(config((2, 3)), str(tmp_path / "run"))
  assert compile_count() == before + 1
  [path] = (folder / "profile").rglob("*.xplane.pb")
  names = [
    event.name
    for plane in jax.profiler.ProfileData.from_file(str(path)).planes
    for line in plane.lines
    for event in line.events
  ]
  launches = [name for name in names if name.startswith("simpo_jax ")]
  assert launches == ["simpo_jax train", "simpo_jax train"]
  assert any("dot" in name for name in names), "the program's own operations"
  record = json.loads((folder / "run.json").read_text())
  assert record["launches"] == ["train"] * 4


@pytest.mark.parametrize("steps", ((3,), (0, 2), (3, 2), (1, 5), (1, 2, 3)))
def test_mistakes(steps):
  with pytest.raises(UserError, match=r"profile\.steps=.*first, last.*<= 4"):
    validate(config(steps))
