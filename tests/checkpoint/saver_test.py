"""Saving is tried before the first step, with the writers of the checkpoints themselves."""

import errno
import os

import jax
import numpy as np
import pytest

from simpo_jax import storage
from simpo_jax.checkpoint import direct_io
from simpo_jax.checkpoint.saver import try_saving
from simpo_jax.errors import UserError
from simpo_jax.program import compile_count
from support.buckets import BUCKET, objects, put
from support.hosts import run_group
from support.run_outcome import record
from support.runs_in_process import go

pytestmark = pytest.mark.usefixtures("one_executable")

MESH = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1, 1, 1), ("a", "b", "c", "d"))
FULL = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
# The second process finds its part of the disk full.
WORK = """
import sys
import jax, numpy as np
from simpo_jax import cli, distributed
from simpo_jax.checkpoint import direct_io
from simpo_jax.checkpoint.saver import try_saving
from simpo_jax.program.compile_count import compile_count
from simpo_jax.storage import open_path

def full(*_):
  raise OSError(28, "No space left on device")

distributed.start(distributed.Options())
mesh = jax.sharding.Mesh(np.array(jax.devices()), "a")
with distributed.ending_together():
  try_saving(open_path(sys.argv[1], ""), mesh)
  assert compile_count() == 0
  distributed.gather("all have saved", "")
  print(f"saved by {jax.process_index()}")
  if jax.process_index() == 1:
    direct_io._write_bytes = full
  try_saving(open_path(sys.argv[1], ""), mesh)
"""


def test_a_trial_compiles_nothing_and_leaves_nothing(tmp_path):
  before = compile_count.compile_count()
  try_saving(tmp_path, MESH)
  assert compile_count.compile_count() == before and os.listdir(tmp_path) == []


def test_what_a_killed_trial_left_is_removed_and_checkpoints_stay(tmp_path):
  for name in (
    "trial/step_000000/params",
    "trial/step_000000.orbax-checkpoint-tmp-1",
    "step_000002",
  ):
    (tmp_path / "checkpoints" / name).mkdir(parents=True)
  try_saving(tmp_path, MESH)
  assert os.listdir(tmp_path / "checkpoints") == ["step_000002"]


@pytest.mark.parametrize("options", [{}, {"checkpoint__every": 0, "checkpoint__at_end": False}])
def test_a_place_that_cannot_be_saved_to_is_told_at_the_start(
  tmp_path,
  monkeypatch,
  before_launch,  # noqa: F811
  options,
):
  """Also where nothing is to be saved: a stop would be."""

  def full(*_):
    raise FULL

  with monkeypatch.context() as patch:
    patch.setattr(direct_io, "_write_bytes", full)
    with pytest.raises(
      UserError, match=rf"--workdir={tmp_path}/run: nothing can be saved there .*No space left"
    ):
      go(tmp_path / "run", **options)
  failed = record(tmp_path / "run")
  assert (failed["status"], failed["launches"]) == ("failed", [])
  assert not (tmp_path / "run" / "checkpoints").exists()
  looked = []
  before_launch(0, lambda: looked.append(os.listdir(tmp_path / "run")))
  go(tmp_path / "run", **options)  # the storage was mended
  assert "checkpoints" not in looked[0]


def test_a_bucket_keeps_nothing_of_a_trial(emulator):  # noqa: F811
  try_saving(storage.open_path(f"{BUCKET}/tried", ""), MESH)
  assert objects(f"{BUCKET}/tried") == []


def test_a_bucket_s_mark_of_a_folder_is_nothing(emulator):  # noqa: F811
  put(f"{BUCKET}/marked/", b"")
  assert storage.names(storage.open_path(f"{BUCKET}/marked", "")) == []


def test_every_process_tries(tmp_path):
  (tmp_path / "run").mkdir()
  ends = run_group(tmp_path, [["-c", WORK, str(tmp_path / "run")]] * 2)
  assert [end.code for end in ends] == [2, 2]
  for process, end in enumerate(ends):
    assert f"saved by {process}" in end.err and "No space left on device" in end.err
