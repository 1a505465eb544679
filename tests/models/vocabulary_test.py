"""A tokenizer with more tokens than the embedding has rows: only a token in use needs one."""

import json

import pytest
from tokenizers import AddedToken, Tokenizer

from simpo_jax.config import default_config
from simpo_jax.config_check import validate
from simpo_jax.errors import UserError
from simpo_jax.loaded_model.model import load_model
from simpo_jax.models.weights import open_model
from simpo_jax.runtime.resolve import resolve, within_vocabulary
from simpo_jax.tokenizer.load import load_tokenizer
from support.hf_models import save_llama
from support.hf_tokenizers import save_tokenizer

ROWS = 1005  # of the embedding: as many as the tokenizer has tokens, before one is added
NOTE = (
  "its embedding has no row for 1 special token(s) of its tokenizer; a text that holds one is "
  "refused"
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


def settings(folder, prompt, answer="c"):
  (folder / "pairs.jsonl").write_text(
    json.dumps({"prompt": "a", "chosen": answer, "rejected": "b"}) + "\n"
  )
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
    }
  )
  return validate(config)


def test_an_added_pad_needs_no_row(folder):
  source = folder(pad_token="[PAD]")
  assert load_tokenizer(str(source)).pad_id == ROWS
  run = resolve(settings(source, "a"))
  assert run.model.notes == (NOTE,)
  assert NOTE in load_model(str(source), {}).notes
  assert max(run.requests[0].prompt.tokens) < ROWS


def test_a_text_that_holds_it_is_named(folder):
  source = folder()
  message = r"the text .*x\[PAD\]y.* has token 1005, \[PAD\], and the embedding of .* only 1005"
  with pytest.raises(UserError, match=message):
    resolve(settings(source, "x[PAD]y"))
  with pytest.raises(UserError, match=message):
    resolve(settings(source, "a", answer="x[PAD]y"))


def test_an_ordinary_token_needs_a_row(folder):
  with pytest.raises(UserError, match="has 1006 tokens, the model only 1005"):
    load_model(str(folder(special=False)), {})


def test_the_end_of_every_answer_needs_a_row(folder):
  source = folder(eos_token="[PAD]")
  with pytest.raises(UserError, match="has 1006 tokens, the model only 1005"):
    within_vocabulary(load_tokenizer(str(source)), open_model(str(source)))
