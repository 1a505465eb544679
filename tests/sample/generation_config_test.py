"""generation_config.json: applied as transformers applies it, or told to the user."""

import json
import pathlib
from typing import Any

import numpy as np
import pytest
import transformers

from simpo_jax.errors import UserError
from simpo_jax.loaded_model.generation_config import drop_excessive_minimum, read_generation_config
from simpo_jax.loaded_model.model import load_model
from simpo_jax.models.config import EMBEDDED
from simpo_jax.models.weights import OpenModel
from simpo_jax.sample import answers
from support.commands import command
from support.hf_models import SOURCE_VOCAB, save_llama, save_source
from support.hf_tokenizers import IM_END, save_tokenizer

PROMPTS = ("Hello there", "abc", "What is it?")


def read(folder, content):
  (folder / "generation_config.json").write_text(json.dumps(content))
  return read_generation_config(OpenModel("test", EMBEDDED, pathlib.Path(folder), None))


def test_the_defaults_of_transformers_are_neutral(tmp_path):
  config = transformers.GenerationConfig()
  defaults = {name: value for name, value in vars(config).items() if value is not None}
  defaults |= getattr(config, "_get_default_generation_params", dict)()
  assert defaults["num_beams"] == 1 and defaults["top_k"] == 50
  assert read(tmp_path, {name: None for name in vars(config)}) == ({}, [])
  found = read(tmp_path, defaults)
  assert found.settings == {"repetition_penalty": 1.0} and found.notes == []


@pytest.mark.parametrize(
  "name, value",
  (
    ("min_length", 5),
    ("max_length", 4096),
    ("num_beams", 4),
    ("no_repeat_ngram_size", 3),
    ("bad_words_ids", [[5]]),
    ("begin_suppress_tokens", [7]),
    ("forced_bos_token_id", 3),
    ("forced_eos_token_id", 4),
    ("penalty_alpha", 0.6),
    ("encoder_repetition_penalty", 1.5),
    ("exponential_decay_length_penalty", [3, 1.1]),
    ("sequence_bias", [[[5], 1.0]]),
    ("guidance_scale", 1.5),
    ("renormalize_logits", True),
    ("watermarking_config", {"bias": 1.0}),
    ("an_unknown_one", 1),
  ),
)
def test_what_is_not_supported_is_named(name, value, tmp_path):
  found = read(tmp_path, {name: value, "pad_token_id": 0, "use_cache": False})
  assert found.settings == {} and len(found.notes) == 1
  assert f"sets {name} " in found.notes[0] and "not supported and not applied" in found.notes[0]


def test_sampling_settings_without_sampling_are_named(tmp_path):
  [note] = read(tmp_path, {"temperature": 0.6, "top_k": 50, "typical_p": 0.9}).notes
  assert "temperature 0.6, typical_p 0.9 without do_sample" in note
  found = read(tmp_path, {"do_sample": True, "temperature": 0.6, "typical_p": 0.9})
  assert found.settings == {"temperature": 0.6}
  assert "typical_p 0.9, which is not supported" in found.notes[0]


@pytest.mark.parametrize(
  "name, value, why",
  (
    ("top_k", "x", "must be a whole number"),
    ("repetition_penalty", -1.0, "must be between"),
    ("min_new_tokens", 1.5, "must be a whole number"),
    ("suppress_tokens", [EMBEDDED.vocab_size], "must be a list of token ids below"),
    ("suppress_tokens", 5, "must be a list of token ids below"),
    ("stop_strings", ["a", ""], "must be strings"),
    ("stop_strings", [3], "must be strings"),
    ("stop_strings", ["\ud800"], "must be strings"),
    ("stop_strings", ["x" * 300], "must be strings"),
  ),
)
def test_what_is_not_valid_is_told(name, value, why, tmp_path):
  found = read(tmp_path, {"do_sample": True, name: value})
  assert found.settings == {"temperature": 1.0}
  assert f"{name}=" in found.notes[0] and why in found.notes[0] and "not appl" in found.notes[0]


def test_supported_settings(tmp_path):
  content = {"min_new_tokens": 9, "suppress_tokens": [3, 4], "stop_strings": "User:"}
  found = read(tmp_path, {**content, "max_length": 20})
  assert found.settings == {"min_new_tokens": 9, "suppress_tokens": (3, 4), "stop": ("User:",)}
  assert found.notes == [] and drop_excessive_minimum(found, 9) == found
  limited = drop_excessive_minimum(found, 8)
  assert "min_new_tokens" not in limited.settings
  assert "min_new_tokens=9 exceeds max_new_tokens=8" in limited.notes[0]


def test_flags_take_precedence_and_stop_strings_add_up(tmp_path):
  save_llama(tmp_path, vocab_size=SOURCE_VOCAB)
  content = {"eos_token_id": 1004, "min_new_tokens": 9, "stop_strings": ["a"], "num_beams": 2}
  save_tokenizer(tmp_path, generation=content)
  loaded = load_model(str(tmp_path), {"generate.stop": ("b",), "generate.suppress_tokens": (5,)})
  c = loaded.config.generate
  assert (c.min_new_tokens, c.stop, c.suppress_tokens) == (9, ("a", "b"), (5,))
  assert any("sets num_beams 2" in note for note in loaded.notes)
  loaded = load_model(str(tmp_path), {"generate.max_new_tokens": 4})
  assert loaded.config.generate.min_new_tokens == 0 and "exceeds" in str(loaded.notes)
  with pytest.raises(UserError, match="min_new_tokens=5 exceeds"):
    load_model(str(tmp_path), {"generate.max_new_tokens": 4, "generate.min_new_tokens": 5})


# --- against transformers' generate -----------------------------------------------------------


@pytest.fixture(scope="module")
def model(tmp_path_factory):
  folder = tmp_path_factory.mktemp("model")
  save_source(folder, max_position_embeddings=128)
  return folder


def ours(folder, content, **changes):
  """The rows of `sample` with a generation_config.json."""
  (folder / "generation_config.json").write_text(json.dumps(content))
  names = {f"generate.{name}": value for name, value in changes.items()}
  loaded, rows = load_model(str(folder), {"generate.prompt_list": PROMPTS, **names}), []
  prompts = answers.usable_prompts(loaded, print)
  answers.sample(loaded, prompts, rows.append, print, lambda text: None)
  return loaded, prompts, [json.loads(row) for row in rows]


def theirs(folder, loaded, prompts, **settings):
  torch = pytest.importorskip("torch")
  net: Any = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
  config = transformers.GenerationConfig(
    do_sample=False, pad_token_id=0, eos_token_id=list(loaded.tokenizer.eos_ids), **settings
  )
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  out = []
  for prompt in prompts:
    ids = torch.tensor(prompt.tokens[None].astype(np.int64))
    made = net.generate(
      ids, attention_mask=torch.ones_like(ids), generation_config=config, tokenizer=tokenizer
    )
    out.append(made[0, len(prompt.tokens) :].tolist())
  return out


@pytest.mark.slow
def test_the_tokens_are_those_of_transformers(model):
  pytest.importorskip("torch")
  common = {"max_new_tokens": 12}
  loaded, prompts, plain = ours(model, common)
  tokens = [row["generated_token_ids"] for row in plain]
  assert tokens == theirs(model, loaded, prompts, **common)
  ends = [tokens[0][3], tokens[1][2], 1004]
  text = plain[2]["generated_text"]
  cases = (
    {"eos_token_id": ends},
    {"eos_token_id": ends, "min_new_tokens": 6},
    {"suppress_tokens": [tokens[0][0], tokens[1][1], tokens[2][5]]},
    {"stop_strings": [text[3:6], "never said"]},
    {"eos_token_id": ends, "min_new_tokens": 7, "suppress_tokens": [tokens[2][1]]},
  )
  seen = [tokens]
  for case in cases:
    loaded, prompts, rows = ours(model, {**common, **case})
    settings = {name: value for name, value in case.items() if name != "eos_token_id"}
    found = [row["generated_token_ids"] for row in rows]
    assert found == theirs(model, loaded, prompts, **common, **settings), case
    seen.append(found)
  assert len({str(found) for found in seen}) == len(seen)  # each case matters
  # What the text leaves out is still among the tokens.
  _, _, rows = ours(model, {**common, "stop_strings": text[3:6]}, strip_stop=True)
  assert rows[2]["generated_text"] == text[: text.index(text[3:6])]
  assert rows[2]["generated_token_ids"] == seen[4][2] and rows[2]["finish_reason"] == "stop"
  assert IM_END in loaded.tokenizer.eos_ids


@pytest.mark.slow
def test_the_flags_of_sample(tmp_path, capsys):
  out = tmp_path / "answers.jsonl"
  flags = ("--max_new_tokens=6", "--min_new_tokens=6", f"--out={out}", "--strip_stop")
  banned = [f"--suppress_tokens={i}" for i in range(128, 262)]
  command("simpo_jax.sample", "--model=embedded", "--prompt=a", *flags, *banned)
  [row] = map(json.loads, out.read_text().splitlines())
  assert row["generated_token_count"] == 6 and max(row["generated_token_ids"]) < 128
