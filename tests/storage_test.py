"""Workdirs and data in a bucket: what a run leaves there is what it leaves on a disk."""

import pytest

from buckets import BUCKET, download, emulator, objects  # noqa: F401  a fixture
from outcome import outcome, record
from runs_in_process import (
  Lost,
  before_launch,  # noqa: F401  a fixture
  go,
  lose,
  one_executable,  # noqa: F401  a fixture
)

pytestmark = pytest.mark.usefixtures("emulator")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, one_executable):  # noqa: F811
  folder = tmp_path_factory.mktemp("undisturbed") / "run"
  go(folder)
  return outcome(folder)


def test_a_run_in_a_bucket_that_was_lost_goes_on(tmp_path, undisturbed, before_launch):  # noqa: F811
  before_launch(6, lose)
  folder = f"{BUCKET}/lost"
  with pytest.raises(Lost):
    go(folder)
  go(folder)
  copy = download(folder, tmp_path / "copy")
  assert outcome(copy) == undisturbed
  assert [r["step"] for r in record(copy)["resumes"]] == [4]
