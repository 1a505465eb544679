"""Digests taken while other files are still being written."""

import hashlib
import os
import time
from unittest import mock

import pytest

from simpo_jax import digests, storage

LARGE = os.urandom(2 << 20)


def sha256(data):
  return hashlib.sha256(data).hexdigest()


@pytest.fixture
def follower(tmp_path):
  made = digests.Follower(tmp_path, "step_1.tmp*")
  yield made
  made.close()


def put(path, data):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(data)


def until_taken(follower, path):
  end = time.monotonic() + 60
  while path not in follower._found:
    assert time.monotonic() < end, f"{path} was never taken"
    time.sleep(0.01)


def test_a_large_file_is_read_as_soon_as_it_is_there_a_small_one_at_the_end(tmp_path, follower):
  folder = tmp_path / "step_1.tmp-7"
  put(folder / "small", b"x")
  put(folder / "d/a", LARGE)
  until_taken(follower, folder / "d/a")
  follower.close()
  put(folder / "d/late", LARGE[::-1])
  with mock.patch.object(digests, "of_files", wraps=digests.of_files) as rest:
    found = follower.finish(folder, ["d/a", "small", "d/late"])
  expected = {"d/a": sha256(LARGE), "small": sha256(b"x"), "d/late": sha256(LARGE[::-1])}
  assert found == expected
  [call] = rest.call_args_list
  assert call.args[1] == ["small", "d/late"]


def test_one_that_changed_after_it_was_read_is_read_again(tmp_path, follower):
  put(tmp_path / "step_1.tmp-7/a", LARGE)
  until_taken(follower, tmp_path / "step_1.tmp-7/a")
  put(tmp_path / "step_1.tmp-7/a", LARGE[::-1])
  found = follower.finish(tmp_path / "step_1.tmp-7", ["a"])
  assert found == {"a": sha256(LARGE[::-1])}


def test_what_its_writer_has_not_put_in_place_is_left_alone(tmp_path, follower):
  put(tmp_path / "step_1.tmp-7/a.__lock", LARGE)
  put(tmp_path / "step_2.tmp-7/other", LARGE)
  put(tmp_path / "step_1.tmp-7/b", LARGE)
  until_taken(follower, tmp_path / "step_1.tmp-7/b")
  time.sleep(0.2)
  assert list(follower._found) == [tmp_path / "step_1.tmp-7/b"]


def test_a_folder_that_goes_away_ends_nothing(tmp_path, follower):
  put(tmp_path / "step_1.tmp-7/a", LARGE)
  until_taken(follower, tmp_path / "step_1.tmp-7/a")
  storage.remove_tree(tmp_path / "step_1.tmp-7")
  put(tmp_path / "step_1.tmp-8/b", LARGE)
  until_taken(follower, tmp_path / "step_1.tmp-8/b")
