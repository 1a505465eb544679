"""Real preference pairs."""

import functools
import json
import os
import pathlib

import pytest

from support.folders import ROOT


def data_file() -> pathlib.Path:
  """The file of real pairs, in `SIMPO_JAX_TEST_DATA` or ../shared/data; skips if absent."""
  folder = os.environ.get("SIMPO_JAX_TEST_DATA", ROOT.parent / "shared" / "data")
  path = pathlib.Path(folder) / "dpo_en_demo.json"
  if not path.is_file():
    pytest.skip(f"no real pairs: {path} is absent; set SIMPO_JAX_TEST_DATA to their folder")
  return path


@functools.cache
def preference_data() -> tuple[dict, ...]:
  """300 real pairs, each {conversations: [{from, value}], chosen, rejected}."""
  return tuple(json.loads(data_file().read_text()))


def prompt_messages(row: dict) -> list[dict]:
  """A row's prompt in the roles of chat templates."""
  roles = {"human": "user", "gpt": "assistant", "system": "system"}
  return [{"role": roles[m["from"]], "content": m["value"]} for m in row["conversations"]]
