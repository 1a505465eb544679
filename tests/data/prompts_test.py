"""Prompts to generate from: every source, and every mistake before the run."""

import dataclasses
import json

import pytest

from simpo_jax.data.prompts import load_prompts
from simpo_jax.errors import UserError
from simpo_jax.generate.requests import make_requests
from simpo_jax.settings import GenerateSettings
from simpo_jax.tokenizer.tokenizer import byte_tokenizer

BYTE = byte_tokenizer()
PLAIN = dataclasses.replace(BYTE, chat_template=None)


def _load(tokenizer=BYTE, **fields):
  return load_prompts(GenerateSettings(**fields), tokenizer).prompts


def _file(tmp_path, name, text):
  (tmp_path / name).write_text(text)
  return str(tmp_path / name)


def test_synthetic():
  prompts = _load(count=3, template="n {index}")
  assert [(p.index, p.text) for p in prompts] == [(0, "n 0"), (1, "n 1"), (2, "n 2")]
  assert prompts[0].tokens.tolist() == [257, 259, *b"n 0", 258, 260]
  assert prompts[0].tokens.dtype == "int32"


def test_prompt_list_wins_and_is_not_cut_by_count():
  assert [p.text for p in _load(prompt_list=("a", "b"), count=1)] == ["a", "b"]


def test_text_file_blank_lines_and_count(tmp_path):
  path = _file(tmp_path, "p.txt", "one\n\n  two \r\nthree\n")
  assert [p.text for p in _load(prompts=path, count=2)] == ["one", "two"]
  assert [p.text for p in _load(prompts=path, count=0)] == ["one", "two", "three"]


def test_jsonl_forms(tmp_path):
  chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
  chat = [*chat, {"from": "human", "value": "c"}]
  rows = [{"messages": chat}, {"prompt": chat}, {"prompt": "c"}, chat]
  path = _file(tmp_path, "p.jsonl", "\n".join(map(json.dumps, rows)))
  prompts = _load(prompts=path, count=0)
  assert [p.text for p in prompts] == ["c"] * 4
  whole = [257, 259, *b"a", 258, 260, *b"b", 258, 259, *b"c", 258, 260]
  assert [p.tokens.tolist() for p in prompts] == [whole, whole, [257, 259, 99, 258, 260], whole]


def test_a_row_may_have_settings_of_its_own(tmp_path):
  own = {"temperature": 0.7, "top_k": 40, "max_new_tokens": 9}
  rows = [{"prompt": "a", **own, "other": 1}, {"prompt": "b"}, {"prompt": "c", "temperature": 1}]
  path = _file(tmp_path, "p.jsonl", "\n".join(map(json.dumps, rows)))
  prompts = _load(prompts=path, count=0)
  assert [dict(p.settings) for p in prompts] == [own, {}, {"temperature": 1}]
  settings = GenerateSettings(max_new_tokens=20, num_samples=2, min_p=0.1)
  requests = make_requests(prompts, settings)
  assert [(r.prompt.index, r.sample) for r in requests] == [
    (i, s) for i in range(3) for s in (0, 1)
  ]
  assert [r.budget for r in requests[::2]] == [9, 20, 20]
  assert [r.sampling.temperature for r in requests[::2]] == [0.7, 0.0, 1]
  assert [r.sampling.top_k for r in requests[::2]] == [40, 0, 0]
  assert all(r.sampling.min_p == 0.1 for r in requests)


def test_without_a_template_the_text_itself_with_one_bos(tmp_path):
  assert _load(PLAIN, prompt_list=("<|end|>",))[0].tokens.tolist() == [257, *b"<|end|>"]
  chat = [{"role": "system", "content": "a"}, {"role": "user", "content": "b"}]
  path = _file(tmp_path, "p.jsonl", json.dumps(chat))
  with pytest.raises(UserError, match="no chat template"):
    _load(PLAIN, prompts=path)


@pytest.mark.parametrize(
  "template", ["none", "{other}", "{index} {}", "{index", "{index.x}", "{0}", "{index:{width}}"]
)
def test_template_fields(template):
  with pytest.raises(UserError, match="field {index} and no other"):
    _load(template=template)


@pytest.mark.parametrize(
    "name, text, says",
    [
        ("p.txt", "\n \n", "has no prompts"),
        ("p.jsonl", "3", "p.jsonl:1 is not a row .* not a JSON object"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt": " "}', "p.jsonl:2 is empty"),
        ("p.jsonl", '{"prompt": "\\ud800"}', "p.jsonl:1 .* lone surrogate"),
        ("p.jsonl", "\n{", "p.jsonl:2 .* not a JSON object"),
        ("p.jsonl", '{"text": "a"}', "p.jsonl:1 needs"),
        ("p.jsonl", '[{"role": "narrator", "content": "a"}]', r"p.jsonl:1 .*\(role 'narrator'\)"),
        ("p.jsonl", '[{"role": "assistant", "content": "a"}]', "must end with the user's turn"),
        ("p.jsonl", '{"prompt": "a", "top_k": 0.5}', "p.jsonl:1: top_k is 0.5"),
        ("p.jsonl", '{"prompt": "a", "top_p": "x"}', 'p.jsonl:1: top_p is "x", and'),
        ("p.jsonl", '{"prompt": "a", "top_p": true}', "p.jsonl:1: top_p is true"),
        ("p.jsonl", '{"prompt": "a", "top_p": 2}', "p.jsonl:1: top_p=2 must be between 1e-06 and"),
        ("p.jsonl", '{"prompt": "a", "min_p": NaN}', "p.jsonl:1: min_p=nan must be between"),
        ("p.jsonl", '{"prompt": "a", "temperature": 3000000000}', "between 0.0 and 2147483647"),
        ("p.jsonl", '{"prompt": "a", "top_p": 1%s}' % ("0" * 400), "must be between 1e-06 and 1.0"),
        ("p.docx", "a", "is of an unknown kind; the name must end in"),
    ],
)  # fmt: skip
def test_file_mistakes_name_the_line(tmp_path, name, text, says):
  path = _file(tmp_path, name, text)
  with pytest.raises(UserError, match=says) as error:
    _load(prompts=path)
  assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "fields, says",
    [
        ({"prompt_list": ("ok", "x" * 20), "max_prompt_length": 10},
         r"prompt 1 .* has 24 tokens, more than generate.max_prompt_length=10"),
        ({"prompt_list": ("ok", " ")}, r"prompt_list\[1\] is empty"),
        ({"count": 0}, "generate.count=0"),
        ({"count": -1, "prompts": "x.txt"}, "generate.count=-1"),
        ({"prompts": "no.txt"}, "no.txt does not exist"),
    ],
)  # fmt: skip
def test_setting_mistakes(fields, says):
  with pytest.raises(UserError, match=says):
    _load(**fields)


def test_not_utf8(tmp_path):
  (tmp_path / "p.txt").write_bytes(b"ok\n\xff\n")
  with pytest.raises(UserError, match="p.txt:2 .* not valid UTF-8"):
    _load(prompts=str(tmp_path / "p.txt"))
