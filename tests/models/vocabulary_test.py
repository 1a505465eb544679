"""A tokenizer with more tokens than the embedding has rows: only a token in use needs one."""

import json
import re
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer

from simpo_jax.chat.history import fit
from simpo_jax.config import default_config
from simpo_jax.config_check import validate
from simpo_jax.data.prompts import load_prompts
from simpo_jax.data.types import Message
from simpo_jax.errors import UserError
from simpo_jax.loaded_model.model import load_model
from simpo_jax.models.weights import open_model
from simpo_jax.runtime.resolve import resolve, within_vocabulary
from simpo_jax.tokenizer.load import load_tokenizer
from support.hf_models import save_llama
from support.hf_tokenizers import save_tokenizer

ROWS = 1005  # of the embedding: as many as the tokenizer has tokens, before one is added
NOTE = (
  "its embedding has no row for 1 special token(s) of its tokenizer; a text that holds one "
  "cannot be used"
)


@pytest.fixture
def folder(tmp_path):
  """`folder(special)`: a model whose tokenizer got a [PAD], and whose embedding did not grow."""

  def make(special=True, **changes):
    save_llama(tmp_path, vocab_size=ROWS)
    save_tokenizer(tmp_path)
    path = tmp_path / "tokenizer.json"
    rust = Tokenizer.from_file(str(path))
    rust.add_tokens([AddedToken("[PAD]", special=special, normalized=False)])
    rust.save(str(path))
    settings = tmp_path / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | changes))
    return tmp_path

  return make


def write(path, *rows):
  path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
  return path


def pair(answer, prompt="a"):
  return {"prompt": prompt, "chosen": answer, "rejected": "b"}


def settings(folder, prompt="a", **fields: Any):
  write(folder / "pairs.jsonl", pair("c"))
  config = default_config()
  config.update_from_flattened_dict(
    {
      "model.source": str(folder),
      "data.train": (str(folder / "pairs.jsonl"),),
      "data.eval": (),
      "data.max_length": 32,
      "data.max_prompt_length": 16,
      "train.batch_size": 1,
      "train.steps": 1,
      "generate.at_steps": (1,),
      "evaluate.every": 0,
      "evaluate.at_end": False,
      "generate.prompts": "",
      "generate.prompt_list": (prompt,),
      "generate.max_new_tokens": 4,
      **fields,
    }
  )
  return validate(config)


def test_an_added_pad_needs_no_row(folder):
  source = folder(pad_token="[PAD]")
  assert load_tokenizer(str(source)).pad_id == ROWS
  run = resolve(settings(source))
  assert run.model.notes == (NOTE,)
  assert NOTE in load_model(str(source), {}).notes
  assert max(run.requests[0].prompt.tokens) < ROWS


@pytest.mark.parametrize("split", ("train", "eval"))
def test_a_row_that_holds_it_is_skipped(split, folder):
  source = folder()
  rows = [pair("x[PAD]y"), pair("c"), pair("c", "x[PAD]y"), pair("")]
  data = write(source / "some.jsonl", *rows)
  fields: dict[str, Any] = {f"data.{split}": (str(data),), "data.max_skip_fraction": 0.9}
  run = resolve(settings(source, **fields, **{"evaluate.at_end": split == "eval"}))
  report = run.skips[split]
  assert report.skipped == {"no_embedding": 2, "empty_chosen": 1} and report.kept == 1
  named = [f"some.jsonl:{line} (token {ROWS}, [PAD])" for line in (1, 3)]
  assert report.examples["no_embedding"] == named
  pairs = run.train_pairs if split == "train" else run.eval_pairs
  assert isinstance(pairs, list) and [p.id for p in pairs] == ["some.jsonl:2"]


PROBLEM = r"the text .*x\[PAD\]y.* has token 1005, \[PAD\], and the embedding of .* only 1005"


def test_a_prompt_that_holds_it_is_named(folder):
  source = folder()
  with pytest.raises(UserError, match=rf"^generate.prompt_list\[0\] cannot .*{PROBLEM}"):
    resolve(settings(source, "x[PAD]y"))
  prompts = write(source / "prompts.jsonl", {"prompt": "a"}, {"prompt": "x[PAD]y"})
  config = settings(source, **{"generate.prompts": str(prompts), "generate.prompt_list": ()})
  with pytest.raises(UserError, match=rf"^prompts.jsonl:2 cannot .*{PROBLEM}"):
    resolve(config)
  tokenizer = load_model(str(source), {}).tokenizer
  found = load_prompts(config.generate, tokenizer, skip_unusable=True)
  assert [p.index for p in found.prompts] == [0] and len(found.skipped) == 1
  assert re.search(rf"^prompts.jsonl:2 cannot .*{PROBLEM}", found.skipped[0])


def test_a_message_that_holds_it_is_refused(folder):
  tokenizer = load_model(str(folder()), {}).tokenizer
  messages: list[Message] = [{"role": "user", "content": "x[PAD]y"}]
  with pytest.raises(UserError, match=f"the conversation cannot .*{PROBLEM}"):
    fit(messages, tokenizer, 100)


def test_an_ordinary_token_needs_a_row(folder):
  with pytest.raises(UserError, match="has 1006 tokens, the model only 1005"):
    load_model(str(folder(special=False)), {})


def test_the_end_of_every_answer_needs_a_row(folder):
  source = folder(eos_token="[PAD]")
  with pytest.raises(UserError, match="has 1006 tokens, the model only 1005"):
    within_vocabulary(load_tokenizer(str(source)), open_model(str(source)))
