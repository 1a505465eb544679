"""The short version of chaos.py: three kills, the first while the data is prepared."""

import pytest

from chaos import chaos
from support.run_outcome import record

pytestmark = [pytest.mark.hosts, pytest.mark.slow]


def test_a_run_that_is_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path):
  moments, differs = chaos(tmp_path, kills=3, processes=1, seed=48)
  assert len(moments) == 3 and not differs
  assert record(tmp_path / "wild")["resumes"], "no kill came after a checkpoint"
