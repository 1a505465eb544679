"""Prepared pairs are what a reader of the source sees, and are there whole or not at all."""

import errno
import gzip
import hashlib
import http.server
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simpo_jax.data import file_chunks
from simpo_jax.data.file_chunks import read_chunk, split_into_chunks
from simpo_jax.data.prepared import builder
from simpo_jax.data.prepared.dataset import open_prepared, verify
from simpo_jax.data.readers import hub, splits
from simpo_jax.data.row_files import Malformed, read_rows
from simpo_jax.data.rows.formats import to_conversation
from simpo_jax.data.sources import read_files
from simpo_jax.errors import UserError
from simpo_jax.prepare.__main__ import prepare
from support.folders import ROOT, TESTS
from support.sources import find_files

MESSAGE = {"role": "user", "content": "hé?\n"}
FORMS = (
  {"prompt": "plain ", "chosen": "yes", "rejected": "no"},
  {"prompt": [MESSAGE], "chosen": "ja", "rejected": "nein"},
  {"conversations": [{"from": "human", "value": "q"}], "system": "s",
   "chosen": {"from": "gpt", "value": "a"}, "rejected": {"from": "gpt", "value": "b"}},
  {"chosen": "\n\nHuman: one\n\nAssistant: two", "rejected": "\n\nHuman: one\n\nAssistant: 2"},
  {"prompt": [MESSAGE], "tools": [{"name": "f"}], "chat_template_kwargs": {"a": [1]},
   "chosen": [{"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f"}}]},
              {"role": "tool", "content": "ja", "name": "f"},
              {"role": "assistant", "content": "é", "reasoning_content": "hm"}],
   "rejected": "nein"},
)  # fmt: skip


def rows_of(count):
  """Rows of all forms, each different."""
  texts = (json.dumps(FORMS[i % 5]).replace("ja", f"ja {i}") for i in range(count))
  return [
    json.loads(t.replace("plain ", f"{i} ").replace("?", f"{i}?")) for i, t in enumerate(texts)
  ]


def write_lines(path, rows):
  lines = [r if isinstance(r, str) else json.dumps(r) for r in rows]
  path.write_text("\n".join(lines) + "\n")
  return str(path)


def contents(spec, split="train"):
  prepared = open_prepared(str(spec), split=split)
  rows = [prepared.read(i) for i in range(len(prepared))]
  return [(row_id, to_conversation(row)[:5]) for row_id, row in rows]


def build(source, out, chunk_bytes=None, workers=1, eval_fraction=0.0, force=False, skips=0.1):
  target = builder.Target(out, "mine", "1.0.0", {})
  files = find_files(str(source))
  return builder.build(files, target, eval_fraction, skips, workers, force, chunk_bytes=chunk_bytes)


def converted(source):
  """What a dataset of a file is to hold."""
  rows = ((name, row) for name, row in read_rows(source) if isinstance(row, dict))
  return [(name, to_conversation(row)[:5]) for name, row in rows]


def test_a_round_trip_through_several_shards_gives_the_source(tmp_path):
  source = write_lines(tmp_path / "a.jsonl", rows_of(40))
  record, new = build(source, tmp_path / "out", chunk_bytes=700)
  assert new and len(record["shards"]["train"]) > 3
  direct = converted(source)
  assert contents(f"tfds:{tmp_path}/out/mine") == direct
  assert contents(f"tfds:{tmp_path}/out/mine/1.0.0:train[5:7]") == direct[5:7]


def test_columns_of_other_names(tmp_path):
  rows = [{"q": f"{i}?", "chosen": "yes", "bad": "no", "score": 1} for i in range(9)]
  pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet", row_group_size=2)
  source = write_lines(tmp_path / "b.jsonl", rows)
  for number, file in enumerate((str(tmp_path / "a.parquet"), source)):
    name = f"mine{number}"
    prepare([file], tmp_path / "out", name, workers=2, columns=["prompt=q", "rejected=bad"])
    found = contents(f"tfds:{tmp_path}/out/{name}")
    assert [pair[:3] for _, pair in found] == [(f"{i}?", "yes", "no") for i in range(9)]
    record = json.loads((tmp_path / "out" / name / "1.0.0" / "prepared.json").read_text())
    assert record["source"]["columns"] == {"prompt": "q", "rejected": "bad"}
  with pytest.raises(UserError, match="^--columns: 'prompt' is not FIELD=COLUMN"):
    prepare([source], tmp_path / "out", "other", columns=["prompt"])


@pytest.mark.parametrize("workers", (1, 2))
def test_a_column_that_no_row_of_a_source_has_is_refused(tmp_path, workers):
  good = {"prompt": "a", "chosen": "yes", "rejected": "no"}
  table = pa.Table.from_pylist([{**good, "q": f"{i}"} for i in range(9)])
  pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
  lines = write_lines(tmp_path / "b.jsonl", [good, "{", {**good, "sys": "c"}])
  table, out = str(tmp_path / "a.parquet"), tmp_path / "out"
  says = "^--columns names 'sys', which no row of .*a.parquet has; there are prompt, .*, q$"
  for sources in ([table], [lines, table]):
    with pytest.raises(UserError, match=says) as told:
      prepare(sources, out, "mine", workers=workers, columns=["system=sys"], max_skip_fraction=1)
    with pytest.raises(UserError) as trained:
      list(read_files(table, find_files(table), {"system": "sys"}))
    assert str(told.value) == str(trained.value).replace("--config.data.columns", "--columns")
  assert not list(out.glob("mine/*"))
  prepare([lines], out, "mine", workers=workers, columns=["system=sys"], max_skip_fraction=1)
  assert contents(f"tfds:{out}/mine")[1][1][0][0] == {"role": "system", "content": "c"}


def test_files_that_are_left_out_and_columns_are_told_by_the_flags_name(
  tmp_path, capsys, monkeypatch
):
  monkeypatch.setenv("COLUMNS", "500")  # of the terminal
  write_lines(tmp_path / "in.jsonl", [*rows_of(5), {"text": "a"}])
  (tmp_path / "notes.txt").write_text("x")
  prepare([str(tmp_path)], tmp_path / "out", "mine", max_skip_fraction=0.5, columns=["prompt=q"])
  said = capsys.readouterr().out
  assert f"{tmp_path}: not read, being of no known kind: notes.txt" in said
  assert "; --columns maps other names to them" in said
  assert "data.columns" not in said


def test_shards_do_not_depend_on_the_number_of_workers(tmp_path):
  source = write_lines(tmp_path / "a.jsonl", rows_of(60))
  records = [
    build(source, tmp_path / str(n), chunk_bytes=900, workers=n, eval_fraction=0.2)[0]
    for n in (1, 2)
  ]
  assert records[0] == records[1], "checksums included"
  assert records[0]["pairs"]["train"] + records[0]["pairs"]["test"] == 60


def test_splits_are_apart_and_keep_the_order(tmp_path):
  source = write_lines(tmp_path / "a.jsonl", rows_of(200))
  build(source, tmp_path / "out", chunk_bytes=3000, eval_fraction=0.25)
  train, test = (contents(f"tfds:{tmp_path}/out/mine", s) for s in ("train", "test"))
  direct = converted(source)
  assert sorted(train + test, key=direct.index) == direct
  for part in (train, test):
    assert part == sorted(part, key=direct.index)
  assert 20 <= len(test) <= 80
  # A row stays where it is when others are added behind it.
  write_lines(tmp_path / "a.jsonl", rows_of(260))
  build(source, tmp_path / "more", eval_fraction=0.25)
  assert contents(f"tfds:{tmp_path}/more/mine", "test")[: len(test)] == test


@pytest.mark.parametrize("chunk_bytes", (1, 60, 200, 10**6))
def test_parts_of_a_file_are_the_file(tmp_path, chunk_bytes):
  lines = [b'{"a": 1}', b"", b'{"a": ', b"[1]", b"\xff", b'{"a": 2, "b": "' + b"x" * 99 + b'"}']
  (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines * 7))
  table = pa.Table.from_pylist([{"n": i} for i in range(50)])
  pq.write_table(table, tmp_path / "b.parquet", row_group_size=8)
  (tmp_path / "c.json").write_text(json.dumps([{"a": 1}, 3]))
  (tmp_path / "d.jsonl.gz").write_bytes(gzip.compress(b'{"a": 1}\n\n{"a": 2}\n'))
  files = find_files(str(tmp_path))
  assert [f.name for f in files] == ["a.jsonl", "b.parquet", "c.json", "d.jsonl.gz"]
  for columns in ({}, {"prompt": "n"}):
    chunks = split_into_chunks(files, chunk_bytes)
    read = [item for chunk in chunks for item in read_chunk(chunk, columns)]
    assert read == list(read_files("all", files, columns))


@pytest.mark.parametrize("chunk_bytes", (1, 100, 10**6))
def test_a_line_without_end_is_malformed_and_not_held(tmp_path, monkeypatch, chunk_bytes):
  monkeypatch.setattr(file_chunks, "MAX_LINE", 50)
  monkeypatch.setattr(file_chunks, "_READ_BYTES", 16)
  exact = b'{"a": "' + b"x" * 40 + b'"}\n'  # 50 bytes with its end
  lines = [b'{"a": 1}\n', exact, b'{"a": "' + b"x" * 41 + b'"}\n', b"y" * 170 + b"\n", b'{"b": 2}']
  (tmp_path / "a.jsonl").write_bytes(b"".join(lines))
  files = find_files(str(tmp_path / "a.jsonl"))
  read = [item for chunk in split_into_chunks(files, chunk_bytes) for item in read_chunk(chunk)]
  bad = Malformed("malformed_json")
  assert [row for _, row in read] == [{"a": 1}, {"a": "x" * 40}, bad, bad, {"b": 2}]
  assert [row_id for row_id, _ in read] == [f"a.jsonl:{i}" for i in range(1, 6)]


def test_a_folder_names_its_files_and_leaves_hidden_ones_alone(tmp_path):
  for name in ("b/x.jsonl", "a.jsonl", ".cache/y.jsonl", "notes.txt"):
    (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
    write_lines(tmp_path / "in" / name, rows_of(1))
  build(tmp_path / "in", tmp_path / "out")
  assert [i for i, _ in contents(f"tfds:{tmp_path}/out/mine")] == ["a.jsonl:1", "b/x.jsonl:1"]
  (tmp_path / "empty").mkdir()
  with pytest.raises(UserError, match="holds no file"):
    build(tmp_path / "empty", tmp_path / "out2")


def test_rows_that_cannot_be_used_are_counted_with_examples(tmp_path, capsys):
  bad = ["{", {"prompt": "a"}, {**FORMS[0], "chosen": " "}, {**FORMS[0], "chosen": "no"}, "[1]"]
  source = write_lines(tmp_path / "a.jsonl", bad + rows_of(15))
  record, _ = build(source, tmp_path / "out", chunk_bytes=200, skips=0.25)
  assert record["skipped"] == {
    "malformed_json": 2, "missing_field": 1, "empty_chosen": 1, "identical": 1,
  }  # fmt: skip
  assert record["examples"]["malformed_json"] == ["a.jsonl:1", "a.jsonl:5"]
  assert (record["rows"], record["pairs"]) == (20, {"train": 15})
  with pytest.raises(UserError, match="5 of 20 rows cannot be used, nothing was written.*raise"):
    build(source, tmp_path / "none")
  assert [p.name for p in (tmp_path / "none").iterdir()] == [".mine.lock"]
  prepare([source], tmp_path / "cli", max_skip_fraction=0.3)
  assert "a.jsonl:1, a.jsonl:5" in capsys.readouterr().out


def test_a_second_time_is_nothing_and_another_source_is_refused(tmp_path):
  source = write_lines(tmp_path / "a.jsonl", rows_of(4))
  first, _ = build(source, tmp_path / "out")
  shard = next((tmp_path / "out").rglob("*.array_record*"))
  before = shard.stat().st_mtime_ns
  assert build(source, tmp_path / "out") == (first, False)
  assert shard.stat().st_mtime_ns == before
  write_lines(tmp_path / "a.jsonl", rows_of(5))
  with pytest.raises(UserError, match="another source.*--name or --version.*--force"):
    build(source, tmp_path / "out")
  assert len(contents(f"tfds:{tmp_path}/out/mine")) == 4
  build(source, tmp_path / "out", force=True)
  assert len(contents(f"tfds:{tmp_path}/out/mine")) == 5
  assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".mine.lock", "mine"]


def test_the_content_of_a_source_counts_and_not_its_time(tmp_path):
  source = write_lines(tmp_path / "a.jsonl", rows_of(4))
  first, _ = build(source, tmp_path / "out")
  os.utime(source, (0, 0))
  assert build(source, tmp_path / "out") == (first, False)
  content = (tmp_path / "a.jsonl").read_bytes()
  (tmp_path / "a.jsonl").write_bytes(content.replace(b"yes", b"yet"))
  with pytest.raises(UserError, match="another source"):
    build(source, tmp_path / "out")


def test_a_record_of_an_earlier_version_has_no_digest(tmp_path):
  source = write_lines(tmp_path / "a.jsonl", rows_of(4))
  build(source, tmp_path / "out")
  path = tmp_path / "out" / "mine" / "1.0.0" / "prepared.json"
  record = json.loads(path.read_text())
  record["source"]["files"] = [stamp[:3] for stamp in record["source"]["files"]]
  path.write_text(json.dumps(record))
  assert build(source, tmp_path / "out") == (record, False)
  os.utime(source, (0, 0))
  with pytest.raises(UserError, match="recorded no digest .*cannot be told; .*--force"):
    build(source, tmp_path / "out")
  write_lines(tmp_path / "a.jsonl", rows_of(5))
  with pytest.raises(UserError, match="another source"):
    build(source, tmp_path / "out")


def test_pairs_of_a_prompt_are_in_one_split_and_an_earlier_split_is_told(tmp_path, capsys):
  rows = [{"prompt": f"q{i // 4}", "chosen": f"a{i}", "rejected": "b"} for i in range(200)]
  source = write_lines(tmp_path / "a.jsonl", rows)
  prepare([source], tmp_path / "out", "mine", eval_fraction=0.25)
  parts = [contents(f"tfds:{tmp_path}/out/mine", split) for split in ("train", "test")]
  train, test = ({pair[0] for _, pair in part} for part in parts)
  assert not train & test and len(train | test) == 50 and len(test) > 4
  assert "held pairs out by row" not in capsys.readouterr().out
  path = tmp_path / "out" / "mine" / "1.0.0" / "prepared.json"
  record = json.loads(path.read_text())
  assert record.pop("split_by") == "prompt"
  path.write_text(json.dumps(record))
  prepare([source], tmp_path / "out", "mine", eval_fraction=0.25)
  assert "held pairs out by row, so the splits may share prompts" in capsys.readouterr().out


def test_no_temporary_folder_is_left(tmp_path, monkeypatch):
  (tmp_path / "tmp").mkdir()
  monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
  build(write_lines(tmp_path / "a.jsonl", rows_of(4)), tmp_path / "out")
  assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.program
@pytest.mark.parametrize("fraction", (0.0, 0.2))
def test_what_it_says_to_use_can_be_used(tmp_path, capsys, monkeypatch, fraction):
  monkeypatch.chdir(tmp_path)
  rows = [{**FORMS[1], "prompt": [{**MESSAGE, "content": f"Say {i}."}]} for i in range(60)]
  source = write_lines(tmp_path / "a.jsonl", rows)
  prepare([source], tmp_path / "the out", eval_fraction=fraction)
  [use] = re.findall("^use: (.*)$", capsys.readouterr().out, re.M)
  short = "--config.train.steps=1 --config.generate.at_steps=() --config.report.write=False"
  flags = shlex.split(use) + short.split()
  done = subprocess.run(
    [sys.executable, "-m", "simpo_jax.main", f"--config={ROOT}/configs/m11.py", *flags],
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert ("held out (" in done.stdout) == bool(fraction)


@pytest.mark.parametrize(
  "name", ("../evil", "a/b", "/tmp/x", "..", "Caps", "1st", "a b", "a.b", "")
)
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
  source = write_lines(tmp_path / "a.jsonl", rows_of(4))
  if name:
    with pytest.raises(UserError, match="--name="):
      prepare([source], tmp_path / "out", name)
  with pytest.raises(UserError, match="--version="):
    prepare([source], tmp_path / "out", "fine", version=name)
  assert not (tmp_path / "out").exists()


def test_the_name_comes_from_the_source():
  from simpo_jax.prepare.__main__ import default_name

  assert default_name("data/My-Pairs.v2.jsonl.gz") == "my_pairs_v2"
  assert default_name("Org/Ultra_Feedback:data/train-*") == "ultra_feedback"
  assert default_name("/x/2024.parquet") == "pairs_2024"
  assert default_name("https://host/x/My%20Pairs.csv.zst?download=true") == "my_pairs"
  assert default_name("data/*.jsonl") == "pairs"


@pytest.mark.parametrize(
  "bad", ("../../x.parquet", "/etc/x.jsonl", "a/../../x.json", "a\\..\\x.json")
)
def test_a_repository_cannot_name_files_outside_itself(bad):
  with pytest.raises(UserError, match="outside its own folder"):
    hub.check_names("org/data", ["ok.parquet", bad])


def test_a_repository_of_several_splits_asks_which():
  names = ["README.md", *(f"data/{s}-0000{i}-of-00002.parquet" for s in ("train", "test")
                          for i in (0, 1))]  # fmt: skip
  found = splits.group(splits.data_files(names).data, merge=False)
  with pytest.raises(UserError, match="several splits; choose one.*data/test-\\*, data/train-\\*"):
    splits.choose("org/data", found)
  assert splits.choose("org/data", found, splits.TRAIN).names == (names[1], names[2])
  assert splits.matching("org/data", names, "data/train-*") == [names[1], names[2]]
  with pytest.raises(UserError, match="no file matches.*data/train-00000"):
    splits.matching("org/data", names, "nothing*")
  assert hub.is_hub_source("org/data") and hub.is_hub_source("org/data:train-*")
  assert not hub.is_hub_source("folder/pairs.jsonl") and not hub.is_hub_source(str(TESTS))


def _command(*flags):
  return [sys.executable, "-m", "simpo_jax.prepare", *flags]


def test_a_killed_preparation_leaves_nothing_half_and_starts_over(tmp_path):
  source = write_lines(tmp_path / "a.jsonl", rows_of(40) * 4000)
  out = tmp_path / "out"
  command = _command(f"--source={source}", f"--out={out}", "--name=mine", "--workers=1")
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  try:
    deadline = time.monotonic() + 60
    while not list(out.glob(".mine.*.tmp/**/part*")):
      assert process.poll() is None and time.monotonic() < deadline
      time.sleep(0.02)
  finally:
    process.send_signal(signal.SIGKILL)
    process.wait()
  assert not (out / "mine").exists() and list(out.glob(".mine.*.tmp"))
  with pytest.raises(UserError, match="no such dataset"):
    open_prepared("tfds:mine", str(out))
  write_lines(tmp_path / "a.jsonl", rows_of(3))
  build(source, out)
  assert len(contents(f"tfds:{out}/mine")) == 3
  assert sorted(p.name for p in out.iterdir()) == [".mine.lock", "mine"]


def test_a_full_disk_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
  def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

  monkeypatch.setattr(builder, "write_chunk", full)
  with pytest.raises(UserError, match="no space is left in .*--out"):
    build(write_lines(tmp_path / "a.jsonl", rows_of(4)), tmp_path / "out")
  assert [p.name for p in (tmp_path / "out").iterdir()] == [".mine.lock"]


def test_two_at_once_is_refused(tmp_path):
  source = write_lines(tmp_path / "a.jsonl", rows_of(4))
  with builder.exclusive(builder.Target(tmp_path / "out", "mine", "1.0.0", {})):
    with pytest.raises(UserError, match="being prepared"):
      build(source, tmp_path / "out")


def _flip(path, at=None):
  data = bytearray(path.read_bytes())
  data[len(data) // 3 if at is None else at] ^= 1
  path.write_bytes(data)


@pytest.mark.parametrize("harm", ("flip", "cut", "absent", "record"))
def test_a_corrupt_shard_is_named_with_the_command_that_mends_it(tmp_path, harm):
  source = write_lines(tmp_path / "a.jsonl", rows_of(400))
  build(source, tmp_path / "out", chunk_bytes=15_000)
  shards = sorted((tmp_path / "out").rglob("*.array_record*"))
  assert len(shards) > 1
  victim = shards[1]
  if harm == "flip":
    _flip(victim, 2000)
  elif harm == "cut":
    victim.write_bytes(victim.read_bytes()[:-70_000])
  elif harm == "absent":
    victim.unlink()
  else:
    victim = victim.with_name("prepared.json")
    victim.write_text("{")
  spec = f"tfds:{tmp_path}/out/mine"
  says = f"{victim.name} is corrupt .*python -m simpo_jax.prepare .*--name=mine .*--force"
  with pytest.raises(UserError, match=says):
    contents(spec)
  with pytest.raises(UserError, match=says):
    verify(spec, tmp_path)


def test_verify_finds_what_no_read_has_met(tmp_path):
  source = write_lines(tmp_path / "a.jsonl", rows_of(40))
  build(source, tmp_path / "out")
  spec = f"tfds:{tmp_path}/out/mine"
  shard = next((tmp_path / "out").rglob("*.array_record*"))
  assert verify(spec, tmp_path) == (1, shard.stat().st_size)
  _flip(shard, shard.stat().st_size - 1)  # padding of the index
  with pytest.raises(UserError, match=f"{shard.name} is corrupt .its sha256"):
    verify(spec, tmp_path)


@pytest.mark.parametrize(
  "spec, says",
  [
    ("tfds:", "name a prepared dataset"),
    ("tfds:other", "no such dataset in .*has mine"),
    ("tfds:mine:9.9.9", "no such dataset"),
    ("tfds:mine:nope", "no split 'nope'; it has train"),
    ("tfds:../out/x", "not the folder of a prepared dataset"),
    ("tfds:mine:train[oops]", "cannot be read"),
    ("tfds:mine:train[:0]", "cannot be read"),
  ],
)
def test_wrong_names_say_what_there_is(tmp_path, spec, says):
  build(write_lines(tmp_path / "a.jsonl", rows_of(4)), tmp_path / "out")
  with pytest.raises(UserError, match=says):
    open_prepared(spec, str(tmp_path / "out"))


def test_names_are_looked_up_where_tfds_does(tmp_path, monkeypatch):
  build(write_lines(tmp_path / "a.jsonl", rows_of(4)), tmp_path / "out")
  monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "out"))
  for spec in ("tfds:mine", "tfds:mine:1.0.0", "tfds:mine:train", "tfds:mine:1.0.0:train"):
    assert len(open_prepared(spec)) == 4
  assert len(open_prepared("tfds:mine:train[:50%]")) == 2


def test_the_command_line_without_tensorflow(tmp_path):
  """Even where TensorFlow could be imported, it is not."""
  (tmp_path / "fake" / "tensorflow").mkdir(parents=True)
  (tmp_path / "fake" / "tensorflow" / "__init__.py").write_text("raise SystemExit('imported')")
  source = write_lines(tmp_path / "a.jsonl", rows_of(30))
  path = os.pathsep.join([str(tmp_path / "fake"), *filter(None, [os.environ.get("PYTHONPATH")])])
  env = {**os.environ, "PYTHONPATH": path}
  out = f"--out={tmp_path / 'out'}"
  code = (
    "import sys; from simpo_jax.data.prepared.dataset import open_prepared as o;"
    f"p = o('tfds:a', {str(tmp_path / 'out')!r}); p.read(0);"
    "assert 'tensorflow' not in sys.modules; print(len(p))"
  )
  for command, says in (
    (_command(f"--source={source}", out, "--eval_fraction=0.1"), "pairs/s"),
    (_command("--verify=tfds:a", out), "all checksums match"),
    ([sys.executable, "-c", code], ""),
  ):
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0 and says in done.stdout, done.stderr
  done = subprocess.run(_command(out), env=env, capture_output=True, text=True)
  assert done.returncode == 2 and done.stderr.startswith("error: name what to prepare")


def test_malformed_stands_for_a_row(tmp_path):
  (tmp_path / "a.jsonl").write_text("{\n")
  [chunk] = split_into_chunks(find_files(str(tmp_path / "a.jsonl")))
  assert list(read_chunk(chunk)) == [("a.jsonl:1", Malformed("malformed_json"))]


class _Hub(http.server.BaseHTTPRequestHandler):
  """As much of the hub as its client asks for."""

  files: dict[str, bytes] = {}

  def do_HEAD(self):
    self._answer(False)

  def do_GET(self):
    self._answer(True)

  def _answer(self, body):
    name = self.path.rpartition(f"/resolve/{SHA}/")[2]
    if self.path.startswith("/api/datasets/org/data"):
      siblings = [{"rfilename": n} for n in self.files]
      content = json.dumps({"id": "org/data", "sha": SHA, "siblings": siblings}).encode()
    elif name in self.files:
      content = self.files[name]
    else:
      self.send_error(404)
      return
    self.send_response(200)
    self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
    self.send_header("X-Repo-Commit", SHA)
    self.send_header("Content-Length", str(len(content)))
    self.end_headers()
    if body:
      self.wfile.write(content)

  def log_message(self, *_):
    pass


SHA = "0123456789" * 4


@pytest.mark.slow
def test_a_dataset_of_the_hub(tmp_path):
  lines = "".join(json.dumps(row) + "\n" for row in rows_of(9)).encode()
  _Hub.files = {
    "README.md": b"#",
    "load.py": b"raise SystemExit('code of a stranger')",
    "data/train-00000-of-00002.jsonl": lines,
    "data/train-00001-of-00002.jsonl": lines,
    "data/test-00000-of-00001.jsonl": b"{",
  }
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Hub) as server:
    threading.Thread(target=server.serve_forever, daemon=True).start()
    env = {
      **{k: v for k, v in os.environ.items() if not k.startswith("HF_")},
      "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}",
      "HF_HOME": str(tmp_path / "cache"),
    }

    def run(source):
      command = _command(f"--source={source}", f"--out={tmp_path / 'out'}", "--workers=1")
      return subprocess.run(command, env=env, capture_output=True, text=True)

    done = run("org/data:data/train-*")
    assert done.returncode == 0 and "18 train pairs of 18 rows" in done.stdout, done.stderr
    assert run("org/data").stderr.startswith("error: org/data has several splits; choose one")
    absent = run("org/absent").stderr
    assert absent.startswith("error: org/absent is neither on this machine nor a dataset")
    server.shutdown()
  found = contents(f"tfds:{tmp_path}/out/data")
  assert [i for i, _ in found[8:10]] == [
    "data/train-00000-of-00002.jsonl:9",
    "data/train-00001-of-00002.jsonl:1",
  ]
  record = json.loads((tmp_path / "out/data/1.0.0/prepared.json").read_text())
  assert record["source"]["hub"] == [f"org/data:data/train-*@{SHA}"]
