"""Reading files: every kind, and every way in which one can be broken."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simpo_jax.data.row_files import Malformed, read_rows
from simpo_jax.errors import UserError

ROWS = [{"prompt": f"p{i}", "chosen": "é", "rejected": "no"} for i in range(3)]


def _write(path, rows):
  lines = "\n".join(json.dumps(r) for r in rows)
  text = json.dumps(rows) if ".jsonl" not in path.name else lines + "\n\n"
  data = text.encode()
  path.write_bytes(gzip.compress(data) if path.name.endswith(".gz") else data)
  return str(path)


@pytest.mark.parametrize("name", ["a.json", "a.json.gz", "a.jsonl", "a.jsonl.gz"])
def test_json_kinds(tmp_path, name):
  rows = list(read_rows(_write(tmp_path / name, ROWS)))
  assert rows == [(f"{name}:{i}", row) for i, row in enumerate(ROWS, start=1)]


def test_parquet_in_more_than_one_batch_with_nested_messages(tmp_path):
  message = [{"role": "user", "content": "hi"}]
  table = pa.Table.from_pylist([{"prompt": message, "n": i} for i in range(600)])
  pq.write_table(table, tmp_path / "a.parquet", row_group_size=100)
  rows = list(read_rows(str(tmp_path / "a.parquet")))
  assert rows == [(f"a.parquet:{i + 1}", {"prompt": message, "n": i}) for i in range(600)]


def test_broken_lines_come_as_malformed_and_keep_their_line_number(tmp_path):
  lines = [b'{"a": 1}', b"", b'{"a": ', b"[1]", b"\xff\xfe", b"[" * 100_000, b'{"a": 2}']
  (tmp_path / "a.jsonl").write_bytes(b"\xef\xbb\xbf" + b"\n".join(lines))
  rows = dict(read_rows(str(tmp_path / "a.jsonl")))
  bad = Malformed("malformed_json")
  assert rows == {
    "a.jsonl:1": {"a": 1},
    **{f"a.jsonl:{i}": bad for i in (3, 4, 6)},
    "a.jsonl:5": Malformed("not_utf8"),
    "a.jsonl:7": {"a": 2},
  }


def test_list_elements_that_are_no_objects_are_malformed(tmp_path):
  (tmp_path / "a.json").write_text('[{"a": 1}, 3, null]')
  assert [type(r).__name__ for _, r in read_rows(str(tmp_path / "a.json"))] == [
      "dict", "Malformed", "Malformed",
  ]  # fmt: skip


@pytest.mark.parametrize(
  "name, content, says",
  [
    ("a.json", b"", "has no rows"),
    ("a.json", b"[]", "has no rows"),
    ("a.jsonl", b"\n\n", "has no rows"),
    ("a.json", b'{"a": 1}', "must hold a list"),
    ("a.json", b'{"a": 1}\n{"a": 2}', "name it .jsonl"),
    ("a.json", b"[1, ", "not valid JSON"),
    ("a.json", b"[" * 100_000, "not valid JSON"),
    ("a.json", b"\xff\xff", "not valid JSON"),
    ("a.jsonl.gz", b"not gzip", "cannot be read"),
    ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9, mtime=0)[:-9], "cannot be read"),
    ("a.parquet", b"PAR1 no", "not a readable parquet"),
    ("a.xlsx", b"x", "unknown kind; the name must end in .json"),
  ],
)
def test_unreadable_files_say_why_in_one_line(tmp_path, name, content, says):
  (tmp_path / name).write_bytes(content)
  with pytest.raises(UserError, match=says) as error:
    list(read_rows(str(tmp_path / name)))
  assert "\n" not in str(error.value) and name in str(error.value)


def test_missing_file_names_its_neighbors(tmp_path):
  (tmp_path / "pairs_train.jsonl").write_text("{}")
  with pytest.raises(UserError, match="did you mean .*pairs_train.jsonl"):
    list(read_rows(str(tmp_path / "pair_train.jsonl")))
  with pytest.raises(UserError, match="neither does the folder"):
    list(read_rows(str(tmp_path / "no" / "x.json")))
  with pytest.raises(UserError, match="is a folder"):
    list(read_rows(str(tmp_path)))
