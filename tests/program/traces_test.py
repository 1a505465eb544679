"""The program is traced once in a whole run; chex counts, and a second lowering fails."""

import chex
import jax
import pytest

from simpo_jax import run as loop
from simpo_jax.program import build
from support.runs_in_process import go

pytestmark = pytest.mark.program
SHORT = {"train__steps": 2, "generate__at_steps": (1,), "checkpoint__at_end": False}


@pytest.fixture
def traced_once(monkeypatch):
  """Has chex count how often the function of the program is traced."""
  jit = jax.jit

  def counted(f, **options):
    f = chex.assert_max_traces(f, n=1) if f.__name__ == "program" else f
    return jit(f, **options)

  chex.clear_trace_counter()
  monkeypatch.setattr(build.jax, "jit", counted)
  yield
  chex.clear_trace_counter()


def test_a_run_traces_its_program_once(tmp_path, traced_once):
  go(tmp_path / "run", **SHORT)
  assert (tmp_path / "run" / "samples" / "step_000001").is_dir()


def test_a_second_lowering_fails(tmp_path, traced_once, monkeypatch):
  lower = build.lower_program
  monkeypatch.setattr(loop, "lower_program", lambda cfg: [lower(cfg) for _ in range(2)][-1])
  with pytest.raises(AssertionError, match="'program' is traced > 1 times"):
    go(tmp_path / "run", **SHORT)
