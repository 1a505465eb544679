"""Requests whose logits are not finite: the others' answers are written, then the command fails."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from simpo_jax.errors import UserError
from support.commands import command
from support.hf_models import save_hf_folder
from support.runs_in_process import go

pytestmark = pytest.mark.program

TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"
PROMPTS = ("a", "b~", "c")  # the tilde's embedding is NaN


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  """A tiny Llama that knows characters, one of which breaks whatever reads it."""
  folder = tmp_path_factory.mktemp("model")
  save_hf_folder(folder, TEMPLATE)
  weights = load_file(folder / "model.safetensors")
  weights["model.embed_tokens.weight"][ord("~") - 32] = np.nan
  save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
  return folder


def check(rows):
  by_prompt = {row["prompt"]: row for row in rows}
  assert set(by_prompt) == set(PROMPTS)
  for prompt, row in by_prompt.items():
    if prompt == "b~":
      assert (row["finish_reason"], row["generated_token_count"]) == ("nonfinite", 0)
      assert (row["generated_text"], row["logprob_sum"]) == ("", 0.0)
    else:
      assert row["finish_reason"] == "length" and row["generated_token_count"] == 3


def test_sample_writes_the_other_answers(model, tmp_path, capsys):
  out = tmp_path / "answers.jsonl"
  flags = ("--max_new_tokens=3", "--ignore_eos", "--max_slots=1", f"--out={out}")
  prompts = [f"--prompt={prompt}" for prompt in PROMPTS]
  with pytest.raises(UserError) as error:
    command("simpo_jax.sample", f"--model={model}", *prompts, *flags)
  assert error.value.exit_code == 2
  assert "1 of 3 requests (prompt 1, sample 0, after 0 tokens)" in str(error.value)
  check(map(json.loads, out.read_text().splitlines()))
  assert "2 cut off at their limit, 1 failed" in capsys.readouterr().err


def test_a_run_writes_the_samples_before_it_fails(model, tmp_path):
  with pytest.raises(UserError, match="prompt 1, sample 0, after 0 tokens"):
    go(
      tmp_path / "run",
      model__source=str(model),
      train__steps=1,
      generate__at_steps=(),
      generate__at_start=True,
      generate__prompt_list=PROMPTS,
      generate__max_new_tokens=3,
      generate__ignore_eos=True,
      generate__attention="reference",
    )
  folder = tmp_path / "run" / "samples" / "step_000000"
  check(map(json.loads, (folder / "host_0000_of_0001.jsonl").read_text().splitlines()))
  summary = json.loads((folder / "summary.json").read_text())
  assert summary["finish_reasons"] == {"length": 2, "nonfinite": 1}
  assert [r["generated_token_count"] for r in summary["results"]] == [3, 0, 3]
  assert json.loads((tmp_path / "run" / "run.json").read_text())["status"] == "failed"
