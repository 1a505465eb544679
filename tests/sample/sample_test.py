"""`simpo_jax.sample`: the tokens of a run, however launched; what becomes of bad prompts."""

import json

import numpy as np
import pytest

from simpo_jax.errors import UserError
from simpo_jax.loaded_model.messages import flag_names
from simpo_jax.loaded_model.model import load_model
from simpo_jax.loaded_model.steps import compile_steps
from simpo_jax.program import compile_count
from simpo_jax.sample import answers
from simpo_jax.sample.__main__ import open_output
from support.commands import command
from support.hf_models import save_llama
from support.hf_tokenizers import save_tokenizer
from support.kv_pool import check_in_place
from support.runs_in_process import go

pytestmark = pytest.mark.usefixtures("one_executable")

RUN = {
  "train__steps": 3,
  "generate__at_steps": (2,),
  "evaluate__every": 0,
  "generate__temperature": 0.8,
  "generate__repetition_penalty": 1.1,
  "generate__num_samples": 2,
  "generate__logprobs": True,
  "generate__max_slots": 3,
  "generate__seed": 5,
}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """Of a run that generates, and saves, after step 2, and saves after step 3."""
  folder = tmp_path_factory.mktemp("run") / "run"
  go(folder, **RUN)
  return folder


def rows_of(loaded, steps, monkeypatch):
  """The rows of a sample whose launches make so many steps."""
  rows = []
  monkeypatch.setattr(answers, "_MAX_STEPS", steps)
  prompts = answers.usable_prompts(loaded, print)
  answers.sample(loaded, prompts, rows.append, print, lambda text: None)
  return [json.loads(row) for row in rows]


def of_run(folder, step):
  file = folder / "samples" / f"step_{step:06d}" / "host_0000_of_0001.jsonl"
  return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_rows_of_a_run(workdir, monkeypatch):
  """Whose one launch is many here, which end anywhere: in the middle of answers and refills."""
  loaded = load_model(str(workdir), {}, step=2)
  before, programs = compile_count.compile_count(), []

  def kept(*args):
    programs.append(compile_steps(*args))
    return programs[0]

  monkeypatch.setattr(answers, "compile_steps", kept)
  rows = rows_of(loaded, 3, monkeypatch)
  assert compile_count.compile_count() == before + 1
  check_in_place(programs[0])
  expected = of_run(workdir, 2)
  assert len(rows) == 8 and len({tuple(row["generated_token_ids"]) for row in rows}) == 8
  for row, other in zip(rows, expected, strict=True):
    for name in ("logprob_sum", "generated_token_logprobs"):
      np.testing.assert_allclose(row.pop(name), other.pop(name), atol=2e-5)
    assert row == other


def test_the_newest_weights_and_other_settings(workdir):
  loaded = load_model(str(workdir), {"generate.num_samples": 1})
  assert loaded.step == 3 and loaded.notes[0] == "weights of step 3"
  assert loaded.config.generate.temperature == 0.8
  with pytest.raises(UserError, match="no such checkpoint"):
    load_model(str(workdir), {}, step=1)
  with pytest.raises(UserError, match="temperature=-1"):
    load_model(str(workdir), {"generate.temperature": -1.0})


def test_bad_prompts_are_left_out_and_told_of(tmp_path):
  """The others keep their numbers, on which their tokens depend."""
  texts = ['{"prompt": "a"}', "{", '{"messages": []}', '{"prompt": "%s"}' % ("x" * 500)]
  file = tmp_path / "prompts.jsonl"
  file.write_text("\n".join([*texts, '{"prompt": "b", "max_new_tokens": 2}']))
  changes = {
    "generate.prompts": str(file),
    "generate.count": 0,
    "generate.max_new_tokens": 4,
  }
  loaded, said = load_model("embedded", {**changes, "generate.max_prompt_length": 64}), []
  prompts = answers.usable_prompts(loaded, said.append)
  assert [(p.index, p.text, p.settings) for p in prompts] == [
    (0, "a", {}),
    (4, "b", {"max_new_tokens": 2}),
  ]
  assert said[0].startswith("2 of 5 prompts kept; skipped: prompts.jsonl:2 is not a row of prompts")
  assert "--max_prompt_length=64" in said[0]
  file.write_text("{")
  with pytest.raises(UserError, match="no prompt can be used: prompts.jsonl:1 is not a row"):
    answers.usable_prompts(load_model("embedded", changes), print)
  # Prompt and answer do not fit into the model's context.
  file.write_text('{"prompt": "%s"}\n{"prompt": "b"}' % ("x" * 5000))
  said, changes["generate.max_prompt_length"] = [], 10_000
  assert len(answers.usable_prompts(load_model("embedded", changes), said.append)) == 1
  assert "exceeds the model's context" in said[0]


@pytest.mark.parametrize("name", ("p.json", "p.parquet", "p.jsonl.gz"))
def test_tables_of_prompts(name, tmp_path):
  import gzip

  import pyarrow as pa
  import pyarrow.parquet as pq

  chat = [{"from": "human", "value": "c"}]
  rows = [
    {"prompt": "a", "top_k": 3, "conversations": None},
    {"prompt": None, "top_k": None, "conversations": chat},
    {"prompt": "b", "top_k": None, "conversations": None},
  ]
  if name == "p.json":
    (tmp_path / name).write_text(json.dumps(rows))
  elif name == "p.parquet":
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / name)
  else:
    lines = "\n".join(map(json.dumps, rows))
    (tmp_path / name).write_bytes(gzip.compress(lines.encode()))
  changes = {"generate.prompts": str(tmp_path / name)}
  prompts = answers.usable_prompts(load_model("embedded", changes), print)
  assert [(p.text, dict(p.settings)) for p in prompts] == [
    ("a", {"top_k": 3}),
    ("c", {}),
    ("b", {}),
  ]


@pytest.mark.parametrize(
  "given, expected",
  [
    (
      {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": "x", "max_new_tokens": 7},
      (0.6, 0.9, 0, 7),
    ),
    ({"do_sample": True, "top_k": 20}, (1.0, 1.0, 20, 16)),
    ({"temperature": 0.6, "top_p": 0.9}, (0.0, 1.0, 0, 16)),
  ],
)
def test_the_makers_settings(given, expected, tmp_path):
  save_llama(tmp_path, vocab_size=1008, max_position_embeddings=32)
  save_tokenizer(tmp_path, generation={"eos_token_id": [1004], **given})
  loaded = load_model(str(tmp_path), {})
  c = loaded.config.generate
  assert (c.temperature, c.top_p, c.top_k, c.max_new_tokens) == expected
  notes = str(loaded.notes)
  assert ("settings of its generation_config.json" in notes) == ("do_sample" in given)
  assert ("without do_sample" in notes) == ("do_sample" not in given)
  assert ("top_k=x must be a whole number" in notes) == (given.get("top_k") == "x")
  assert load_model(str(tmp_path), {"generate.top_k": 4}).config.generate.top_k == 4


def test_a_file_is_whole_or_partial(tmp_path):
  with open_output(str(tmp_path / "a")) as write:
    write("é\n")
    assert not (tmp_path / "a").exists()
  assert (tmp_path / "a").read_text() == "é\n"
  with pytest.raises(SystemExit) as end, open_output(str(tmp_path / "b")) as write:
    write("1\n")
    raise KeyboardInterrupt
  assert end.value.code == 130 and (tmp_path / "b.partial").read_text() == "1\n"
  assert not (tmp_path / "b").exists()


def test_columns_of_the_flag_are_those_of_the_prompts(tmp_path, monkeypatch):
  given = []
  monkeypatch.setattr(answers, "sample", lambda loaded, prompts, *_: given.extend(prompts) or 1 / 0)
  (tmp_path / "p.csv").write_text("query,top_k\na,3\nb,\n")
  (tmp_path / "notes.md").write_text("#")
  flags = ("simpo_jax.sample", "--model=embedded", "--out=-")
  with pytest.raises(ZeroDivisionError):
    command(*flags, f"--prompts={tmp_path}", "--columns=prompt=query")
  assert [(p.text, dict(p.settings)) for p in given] == [("a", {"top_k": 3}), ("b", {})]
  prompts = f"--prompts={tmp_path / 'p.csv'}"
  for more, says in (
    ((prompts,), "p.csv:1 needs one of prompt, .*; --columns maps other names to them"),
    (
      (prompts, "--columns=prompt=nope"),
      "^--columns names 'nope', which no row of .*; there are query",
    ),
    ((prompts, "--columns=nope"), "^--columns: 'nope' is not FIELD=COLUMN"),
    (("--prompt=a", "--columns=prompt=query"), "^--columns names columns of files; name one with"),
  ):
    with pytest.raises(UserError, match=says):
      command(*flags, *more)


def test_messages_name_the_flags():
  text = "--config.data.columns names 'q' (data.columns has it), /x/data.columns, data.columnsize"
  expected = "--columns names 'q' (--columns has it), /x/data.columns, data.columnsize"
  assert flag_names(text) == expected
  text = "--config.generate.num_samples=0, generate.top_k, /x/generate.top_k, --config.model.source"
  assert flag_names(text) == "--samples_per_prompt=0, --top_k, /x/generate.top_k, --model"
