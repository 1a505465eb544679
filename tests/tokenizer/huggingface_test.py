"""Hugging Face tokenizers, made here so that every id and merge is known."""

import numpy as np
import pytest

from simpo_jax.config import replace_fields
from simpo_jax.data.pairs import load_pairs
from simpo_jax.data.prompts import load_prompts
from simpo_jax.data.rows.formats import Conversation
from simpo_jax.data.rows.reasons import SkipRow
from simpo_jax.errors import UserError
from simpo_jax.settings import DataSettings, GenerateSettings, Settings
from simpo_jax.tokenizer.chat_template import TemplateFailed
from simpo_jax.tokenizer.load import load_tokenizer, run_tokenizer
from simpo_jax.tokenizer.tokenizer import encode_with_bos, with_empty_system
from support.hf_tokenizers import (
  BOS,
  CHARS,
  CHATML,
  ENDOFTEXT,
  EOS,
  IM_END,
  IM_START,
  PLAIN,
  SPECIALS,
  save_tokenizer,
)
from support.pairs import tokenize_pair
from support.real_data import data_file
from support.real_model import smollm2_gguf


def _chat(prompt, chosen, rejected):
  yes, no = ({"role": "assistant", "content": text} for text in (chosen, rejected))
  return Conversation(({"role": "user", "content": prompt},), (yes,), (no,))


def _strings(tokenizer, ids):
  assert all(isinstance(i, int) for i in ids)
  names = dict(zip(range(1000, 1005), SPECIALS, strict=True))
  return [names.get(i) or tokenizer.decode([i]) for i in ids]


def test_fields(tmp_path):
  t = save_tokenizer(tmp_path)
  assert (t.bos_id, t.adds_bos, t.vocab_size) == (BOS, True, 1005)
  assert t.eos_ids == (EOS, IM_END), "the template ends turns with <|im_end|>"
  assert t.pad_id == EOS
  assert t.encode("ab<|im_end|>") == [96, IM_END] and t.decode([96, IM_END, 0]) == "ab "


def test_every_id_of_generation_config_ends_a_turn(tmp_path):
  t = save_tokenizer(tmp_path, generation={"eos_token_id": [ENDOFTEXT, IM_END]})
  assert t.eos_ids == (EOS, ENDOFTEXT, IM_END)
  (tmp_path / "generation_config.json").write_text('{"eos_token_id": 1004}')
  assert load_tokenizer(str(tmp_path)).eos_ids == (EOS, ENDOFTEXT, IM_END)


def test_chat_ids_have_one_bos_and_one_end(tmp_path):
  pair = tokenize_pair(_chat("q", "x", "y"), save_tokenizer(tmp_path), DataSettings())
  header = [IM_START, *map(CHARS.index, "assistant\n")]
  user = [IM_START, *map(CHARS.index, "user\nq"), IM_END, CHARS.index("\n")]
  assert pair.prompt.tolist() == [BOS, *user, *header]
  assert pair.chosen.tolist() == [CHARS.index("x"), IM_END], "no newline, no second end"
  response = tokenize_pair(
    _chat("q", "x", "y"), save_tokenizer(tmp_path), DataSettings(header="response")
  )
  assert response.prompt.tolist() == [BOS, *user]
  assert response.chosen.tolist() == [*header, CHARS.index("x"), IM_END]


@pytest.mark.parametrize("adds_bos", [True, False])
def test_a_template_that_writes_bos_gets_no_second(tmp_path, adds_bos):
  t = save_tokenizer(tmp_path, "{{ bos_token }}" + CHATML, adds_bos=adds_bos)
  pair = tokenize_pair(_chat("q", "x", "y"), t, DataSettings())
  assert pair.prompt.tolist()[:2] == [BOS, IM_START] and pair.prompt.tolist().count(BOS) == 1


def test_no_bos_where_the_tokenizer_adds_none(tmp_path):
  t = save_tokenizer(tmp_path, adds_bos=False)
  assert encode_with_bos(t, "x") == [CHARS.index("x")]


def test_a_merge_across_the_boundary_belongs_to_both_responses(tmp_path):
  t = save_tokenizer(tmp_path, PLAIN)
  pair = tokenize_pair(_chat("q", " x", "y"), t, DataSettings())
  # "A:" + " x" is A, ": ", x: so the prompt both share ends before the colon.
  assert _strings(t, pair.prompt.tolist()) == ["<s>", "q", "A"]
  assert _strings(t, pair.chosen.tolist()) == [": ", "x", "</s>"]
  assert _strings(t, pair.rejected.tolist()) == [":", "y", "</s>"]
  for text, response in ((" x", pair.chosen), ("y", pair.rejected)):
    assert [*pair.prompt, *response] == [BOS, *t.encode(f"qA:{text}"), EOS]


def test_without_a_merge_the_prompt_is_what_generation_sees(tmp_path):
  t = save_tokenizer(tmp_path, PLAIN)
  generate = GenerateSettings(prompt_list=("q",))
  pair = tokenize_pair(_chat("q", "x", "y"), t, DataSettings())
  np.testing.assert_array_equal(pair.prompt, load_prompts(generate, t).prompts[0].tokens)


def test_plain_strings_are_joined_like_one_text(tmp_path):
  t = save_tokenizer(tmp_path)
  pair = tokenize_pair(Conversation("xa", "b", " c"), t, DataSettings())
  assert _strings(t, pair.prompt.tolist()) == ["<s>", "x"]
  assert _strings(t, pair.chosen.tolist()) == ["ab", "</s>"]
  assert _strings(t, pair.rejected.tolist()) == ["a", " ", "c", "</s>"]
  no_bos = save_tokenizer(tmp_path, adds_bos=False)
  with pytest.raises(SkipRow, match="empty_prompt"):
    tokenize_pair(Conversation("a", "b", "c"), no_bos, DataSettings())


@pytest.mark.parametrize(
  "tail", ["<|im_end|>", "<|im_end|>\n", "<|im_end|>\n</s>", "<|im_end|><|im_end|>"]
)
def test_the_response_ends_at_its_first_end_token(tmp_path, tail):
  template = "{% for m in messages %}<|im_start|>{{ m.content }}" + tail + "{% endfor %}"
  t = save_tokenizer(tmp_path, template + "{% if add_generation_prompt %}<|im_start|>{% endif %}")
  pair = tokenize_pair(_chat("q", "x", "a <|im_end|> y"), t, DataSettings())
  assert pair.chosen.tolist() == [CHARS.index("x"), IM_END]
  # An end token inside a text is what transformers makes of it, and not the end.
  assert _strings(t, pair.rejected.tolist()) == ["a", " ", "<|im_end|>", " ", "y", "<|im_end|>"]


def test_a_string_that_ends_itself_gets_no_second_end(tmp_path):
  t = save_tokenizer(tmp_path)
  pair = tokenize_pair(Conversation("q", "x</s>", "</s>y"), t, DataSettings())
  assert pair.chosen.tolist() == [CHARS.index("x"), EOS]
  assert pair.rejected.tolist() == [EOS, CHARS.index("y"), EOS]
  with pytest.raises(SkipRow, match="empty_chosen"):
    tokenize_pair(Conversation("q", "</s>", "y"), t, DataSettings())


def test_template_trouble_is_a_reason(tmp_path):
  t = save_tokenizer(
    tmp_path, "{% if messages|length > 1 %}{{ raise_exception('no') }}{% endif %}q"
  )
  with pytest.raises(TemplateFailed, match="no"):
    t.render([{"role": "user", "content": "q"}] * 2, False)
  with pytest.raises(SkipRow, match="template_failed"):
    tokenize_pair(_chat("q", "x", "y"), t, DataSettings())
  t = save_tokenizer(
    tmp_path, "{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}"
  )
  with pytest.raises(SkipRow, match="template_not_prefix"):
    tokenize_pair(_chat("q", "x", "y"), t, DataSettings())


def test_a_template_sees_the_date_of_the_run(tmp_path):
  today = "{{ strftime_now('%d %b %Y, %H:%M') }}"
  save_tokenizer(tmp_path, "{% macro m() %}" + today + "{% endmacro %}{{ m() }}; " + today)
  t = load_tokenizer(str(tmp_path), "2026-11-23T23:59:30")
  date = "23 Nov 2026, 23:59"
  assert t.render([{"role": "user", "content": "q"}], False) == f"{date}; {date}"


def test_messages_without_a_template_are_the_users_mistake(tmp_path):
  t = save_tokenizer(tmp_path, None)
  assert t.chat_template is None and t.eos_ids == (EOS,)
  with pytest.raises(UserError, match="has no chat template"):
    tokenize_pair(_chat("q", "x", "y"), t, DataSettings())


def test_random_folder_uses_its_tokenizer_or_bytes(tmp_path):
  assert load_tokenizer(f"random:{tmp_path}").vocab_size == 262
  save_tokenizer(tmp_path)
  assert load_tokenizer(f"random:{tmp_path}").vocab_size == 1005


def test_sources_that_are_none(tmp_path):
  (tmp_path / "model.gguf").write_bytes(b"no")
  (tmp_path / "other.txt").write_text("no")
  for source, says in (
    (str(tmp_path), "no tokenizer can be read"),
    (str(tmp_path / "modle.gguf"), "did you mean .*model.gguf"),
    (str(tmp_path / "model.gguf"), "no tokenizer can be read"),
    (str(tmp_path / "other.txt"), "neither a folder nor a .gguf file"),
    (f"random:{tmp_path}/no", "no does not exist"),
    ("./no/such/folder", "does not exist"),
  ):
    with pytest.raises(UserError, match=says) as error:
      load_tokenizer(source)
    assert "\n" not in str(error.value)
  (tmp_path / "tokenizer.json").write_text("{")
  with pytest.raises(UserError, match="no tokenizer can be read"):
    load_tokenizer(str(tmp_path))


def test_unknown_hub_id_says_what_to_do(monkeypatch):
  import huggingface_hub.constants

  monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
  with pytest.raises(UserError, match="check the name, or download it") as error:
    load_tokenizer("simpo-jax/no-such-model")
  assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def gguf():
  return load_tokenizer(str(smollm2_gguf()))


def test_gguf(gguf):
  assert gguf.chat_template and gguf.vocab_size > 256 and gguf.eos_ids
  text = "Hello, wörld 123\n"
  assert gguf.decode(gguf.encode(text)) == text
  pair = tokenize_pair(_chat("2 + 2?", "4", "5"), gguf, DataSettings())
  assert pair.chosen[-1] in gguf.eos_ids and gguf.decode(pair.chosen) == "4"
  assert pair.prompt.tolist()[:2].count(gguf.bos_id) <= 1


@pytest.mark.parametrize("truncation", ["prompt_first", "princeton"])
def test_real_data_in_bytes(truncation):
  data = DataSettings(max_length=2048, max_prompt_length=1024, truncation=truncation)
  pairs, report = load_pairs(data, load_tokenizer("embedded"), (str(data_file()),), seed=0)
  assert (report.total, report.kept, len(pairs)) == (300, 300, 300)
  assert report.truncated["prompt"] > 0 and report.truncated["chosen"] > 0
  assert all(len(p.prompt) + max(len(p.chosen), len(p.rejected)) <= 2048 for p in pairs)
  assert min(min(map(len, p[1:])) for p in pairs) >= 1


def test_real_data_with_a_real_tokenizer(gguf):
  data = DataSettings(max_length=8192, max_prompt_length=4608)
  pairs, report = load_pairs(data, gguf, (str(data_file()),), seed=0)
  assert report.kept == 300 and not any(report.truncated.values())
  for pair in pairs:
    assert pair.chosen[-1] in gguf.eos_ids and pair.rejected[-1] in gguf.eos_ids
    assert not np.isin(pair.chosen[:-1], gguf.eos_ids).any()


def test_an_empty_system_message_where_the_template_has_a_place_for_it(tmp_path):
  t = with_empty_system(save_tokenizer(tmp_path, CHATML))
  assert t.render(({"role": "user", "content": "q"},), True) == (
    "<|im_start|>system\n<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n"
  )
  own = ({"role": "system", "content": "s"}, {"role": "user", "content": "q"})
  assert t.render(own, False) == "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
  refuses = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + PLAIN
  for template in (PLAIN, refuses):
    plain = save_tokenizer(tmp_path, template)
    assert with_empty_system(plain) is plain


def test_a_template_in_place_of_the_models_own(tmp_path):
  save_tokenizer(tmp_path, CHATML)

  def tokenizer(template, source=str(tmp_path)):
    fields = {"model.source": source, "data.chat_template": template}
    return run_tokenizer(replace_fields(Settings(), fields))

  template = "{% for m in messages %}{{ m.content }}<|endoftext|>{% endfor %}"
  t = tokenizer(template)
  assert t.render(({"role": "user", "content": "q"},), False) == "q<|endoftext|>"
  assert t.eos_ids == (EOS, ENDOFTEXT) and t.chat_template == template
  (tmp_path / "mine.jinja").write_text("{{ messages[0].role }}: {{ messages[0].content }}")
  mine = tokenizer(str(tmp_path / "mine.jinja"))
  assert mine.render(({"role": "user", "content": "q"},), False) == "user: q"
  with pytest.raises(UserError, match="chat_template=absent.jinja"):
    tokenizer("absent.jinja")
  with pytest.raises(UserError, match="byte tokenizer"):
    tokenizer("{{ messages }}", "embedded")
