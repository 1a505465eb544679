"""Prompts to generate from: every source, and every mistake before the run."""

import dataclasses
import gzip
import json

import pytest

from simpo_jax.data.prompts import load_prompts
from simpo_jax.errors import UserError
from simpo_jax.generate.requests import make_requests
from simpo_jax.settings import GenerateSettings
from simpo_jax.tokenizer.tokenizer import byte_tokenizer
from support.sources import find_files, read_source, zstd

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
        ("p.txt", "\n \n", "p.txt has no rows"),
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


MANY = [[{"role": "user", "content": "a"}], {"prompt": "b"}]
JSONL = "\n".join(map(json.dumps, MANY)).encode()
PACKED = {"": bytes, ".gz": gzip.compress, ".ZST": zstd}


@pytest.mark.parametrize("end", PACKED)
@pytest.mark.parametrize(
  "name, content",
  [("p.jsonl", JSONL), ("p.json", json.dumps(MANY).encode()), ("p.txt", b"a\n\nb\n"),
   ("p.csv", b"prompt\na\nb\n"), ("p.tsv", b"prompt\tn\na\t1\nb\t2\n")],
)  # fmt: skip
def test_a_compressed_file_is_the_file(tmp_path, name, content, end):
  (tmp_path / f"{name}{end}").write_bytes(PACKED[end](content))
  for prompts in (tmp_path, tmp_path / f"{name}{end}", tmp_path / "p.*"):
    found = _load(prompts=str(prompts), count=0)
    assert [p.text for p in found] == ["a", "b"]
    assert found[0].tokens.tolist() == [257, 259, *b"a", 258, 260]


@pytest.mark.parametrize("name", ("p.jsonl.gz", "p.txt.gz", "p.csv.gz", "p.txt.zst", "p.jsonl.zst"))
def test_a_truncated_file_is_told_in_a_line(tmp_path, name):
  content = PACKED[name[-3:] if name.endswith("gz") else ".ZST"](b"prompt\n" + b"a\n" * 99)
  (tmp_path / name).write_bytes(content[:-5])
  with pytest.raises(UserError, match=f"{name} cannot be read .*; is it complete") as error:
    load_prompts(GenerateSettings(prompts=str(tmp_path / name)), BYTE, skip_unusable=True)
  assert "\n" not in str(error.value)


def test_a_csv_file_has_settings(tmp_path):
  path = _file(
    tmp_path,
    "p.csv",
    "prompt,temperature,top_k,max_new_tokens,top_p,seed,stop\n"
    "a,0.7,40,9,.5,,\nb,,,,,,\nc,1,40.0, 7 ,1e-1,,\n",
  )
  found = [dict(p.settings) for p in _load(prompts=path, count=0)]
  assert found == [
    {"temperature": 0.7, "top_k": 40, "max_new_tokens": 9, "top_p": 0.5},
    {},
    {"temperature": 1, "top_k": 40, "max_new_tokens": 7, "top_p": 0.1},
  ]
  assert {type(s[name]) for s in found if s for name in ("top_k", "max_new_tokens")} == {int}


@pytest.mark.parametrize(
  "column, value, says",
  [
    ("seed", "1", "seed cannot be set for one prompt"),
    ("top_k", "1.5", "top_k is 1.5, and must be a whole number"),
    ("top_k", "many", 'top_k is "many", and must be a whole number'),
    ("temperature", "nan", "temperature=nan must be"),
    ("max_new_tokens", "9" * 400, "must be a whole number"),
    ("temprature", "1", "did you mean temperature"),
  ],
)
def test_a_csv_file_with_a_wrong_setting(tmp_path, column, value, says):
  path = _file(tmp_path, "p.csv", f"prompt,{column}\na,{value}\n")
  with pytest.raises(UserError, match=f"p.csv:1: .*{says}"):
    _load(prompts=path)


def test_the_kinds_of_prompt_files_are_all_named(tmp_path):
  (tmp_path / "a.docx").write_text("a")
  for prompts in ("a.docx", "", "*.docx"):
    with pytest.raises(UserError, match=r"must end in .*\.csv, \.tsv, \.txt \(all also with \.gz"):
      _load(prompts=str(tmp_path / prompts))
    with pytest.raises(UserError) as error:
      find_files(str(tmp_path / prompts)) and list(read_source(str(tmp_path / prompts), {}))
    assert ".txt" not in str(error.value)


def test_files_that_are_left_out_are_told(tmp_path):
  for name in ("a.jsonl", "b/c.txt"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text('{"prompt": "a"}')
  settings = GenerateSettings(prompts=str(tmp_path), count=0)
  assert load_prompts(settings, BYTE).left_out == ()
  (tmp_path / "notes.md").write_text("x")
  found = load_prompts(settings, BYTE)
  assert [p.text for p in found.prompts] == ["a", '{"prompt": "a"}']
  assert found.left_out == (f"{tmp_path}: not read, being of no known kind: notes.md",)


def test_columns_of_prompts(tmp_path):
  path = _file(tmp_path, "p.csv", "q,sys\na,s\nb,\n")
  settings = GenerateSettings(prompts=path, count=0)
  found = load_prompts(settings, BYTE, ("prompt=q", "system=sys"), check_columns=True)
  assert [p.text for p in found.prompts] == ["a", "b"]
  assert found.prompts[0].tokens.tolist()[:3] == [257, 261, *b"s"]
  missing = ("prompt=q", "rejected=bad")
  assert len(load_prompts(settings, BYTE, missing).prompts) == 2, "of the training data"
  with pytest.raises(UserError, match="names 'bad', which no row of .*; there are q, sys"):
    load_prompts(settings, BYTE, missing, check_columns=True)
  settings = GenerateSettings(prompts=_file(tmp_path, "p.txt", "a"))
  with pytest.raises(UserError, match="names 'q', which no row of .*p.txt has; there are none"):
    load_prompts(settings, BYTE, ("prompt=q",), check_columns=True)


def test_not_utf8(tmp_path):
  (tmp_path / "p.txt").write_bytes(b"ok\n\xff\n")
  with pytest.raises(UserError, match="p.txt:2 .* not valid UTF-8"):
    _load(prompts=str(tmp_path / "p.txt"))
