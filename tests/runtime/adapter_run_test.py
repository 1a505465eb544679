"""A run whose model is an adapter's folder: it trains that adapter on, and resumes."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from simpo_jax.errors import UserError
from simpo_jax.models.weights import open_model
from support.hf_models import save_hf_folder
from support.lora_models import save_adapter
from support.runs_in_process import go

pytestmark = pytest.mark.program


def test_an_adapter_goes_on_training(tmp_path):
  save_hf_folder(tmp_path / "base", "{% for m in messages %}{{ m.content }}</s>{% endfor %}")
  folder = save_adapter(tmp_path / "adapter", tmp_path / "base")
  adapter = open_model(str(folder)).adapter
  assert adapter is not None
  settings = {
    "model__source": str(folder),
    "data__max_length": 48,
    "data__max_prompt_length": 24,
    "train__lora_rank": adapter.lora.rank,
    "train__lora_alpha": adapter.lora.alpha,
    "train__lora_targets": adapter.lora.targets,
    "train__learning_rate": 1e-4,
    "generate__at_steps": (),
    "evaluate__every": 0,
    "checkpoint__every": 1,
  }
  with pytest.raises(UserError, match="goes on training only as it is: --config.train.lora_rank=4"):
    go(tmp_path / "other", **{**settings, "train__lora_rank": 5})
  go(tmp_path / "run", **{**settings, "train__steps": 2})
  written = tmp_path / "run" / "adapter"
  config = json.loads((written / "adapter_config.json").read_text())
  assert config["base_model_name_or_path"] == str(tmp_path / "base")
  before, after = (load_file(f / "adapter_model.safetensors") for f in (folder, written))
  assert before.keys() == after.keys()
  for name, value in before.items():
    change = np.abs(after[name] - value)
    assert 0 < change.max() < 1e-3, name  # two steps from the file's values, which are 0.15
