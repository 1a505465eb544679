"""A saved model, and copies of it that a test may change."""

import pathlib
import shutil

import pytest

from support.hf_models import save_llama


@pytest.fixture(scope="package")
def saved(tmp_path_factory):
  folder = tmp_path_factory.mktemp("saved")
  save_llama(folder)
  return folder


@pytest.fixture
def folder(saved, tmp_path):
  return pathlib.Path(shutil.copytree(saved, tmp_path / "copy"))
