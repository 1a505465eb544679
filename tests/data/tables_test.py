"""Tables: the columns that are used are read, whatever the others hold."""

import csv
import gzip
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simpo_jax.data.row_files import Malformed, open_lines, read_rows
from simpo_jax.data.rows.fields import UNREAD
from simpo_jax.errors import UserError
from support.sources import read_source, zstd

FAR = 2**61
TYPES = (
  pa.timestamp("ns"), pa.timestamp("ms"), pa.timestamp("us", tz="Mars/Olympus"), pa.duration("ns"),
  pa.date32(), pa.date64(), pa.time64("ns"),
)  # fmt: skip
TEXTS = {"prompt": ["q0", "q1"], "chosen": ["a", "b"], "rejected": ["c", "d"]}


def column(kind, value=FAR):
  value = min(value, 2**31 - 2) if kind.bit_width == 32 else value
  ints = pa.array([value, None], pa.int32() if kind.bit_width == 32 else pa.int64())
  return ints.view(kind)


def read(path, columns=()) -> list[Any]:
  return [row for _, row in read_source(str(path), dict(columns))]


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_a_column_that_is_no_python_value_is_left_alone(tmp_path, kind):
  pq.write_table(pa.table({**TEXTS, "when": column(kind)}), tmp_path / "a.parquet")
  rows = read(tmp_path / "a.parquet")
  expected = [dict(zip(TEXTS, row, strict=True)) for row in zip(*TEXTS.values(), strict=True)]
  assert rows == [{**row, "when": UNREAD} for row in expected]


def test_a_time_in_a_message_is_a_number(tmp_path):
  message = pa.struct([("role", pa.string()), ("at", TYPES[2]), ("on", pa.date32())])
  value = [[{"role": "user", "at": FAR, "on": 2**30}], []]
  stored = pa.struct([("role", pa.string()), ("at", pa.int64()), ("on", pa.int32())])
  prompts = pa.array(value, pa.list_(stored)).cast(pa.list_(message))
  pq.write_table(pa.table({"prompt": prompts}), tmp_path / "a.parquet")
  assert [row["prompt"] for row in read(tmp_path / "a.parquet")] == value


def test_a_mapped_column_is_read_and_one_that_is_not_there_is_refused(tmp_path):
  table = pa.table({"ask": TEXTS["prompt"], "good": TEXTS["chosen"], "a.b": [1, 2], "a": [3, 4]})
  pq.write_table(table, tmp_path / "a.parquet")
  path = str(tmp_path / "a.parquet")
  found = read(path, {"prompt": "ask", "chosen": "a"})
  others = {"good": UNREAD, "a.b": UNREAD}
  assert found == [{"prompt": q, "chosen": n, **others} for q, n in (("q0", 3), ("q1", 4))]
  with pytest.raises(UserError, match="names 'bad', which no row of .*; there are ask, good, a.b"):
    list(read_source(path, {"rejected": "bad"}))
  (tmp_path / "b.jsonl").write_text('{"x": 1}\n{"rejected": "no"}\n')
  ids = [name for name, _ in read_source(str(tmp_path / "b.jsonl"), {"rejected": "bad"})]
  assert ids == ["b.jsonl:1", "b.jsonl:2"], "rows that have the field itself need no column"


def test_what_arrow_cannot_read_is_one_line(tmp_path):
  pq.write_table(pa.table(TEXTS), tmp_path / "a.parquet")
  content = bytearray((tmp_path / "a.parquet").read_bytes())
  content[4:60] = b"\xff" * 56
  (tmp_path / "a.parquet").write_bytes(content)
  (tmp_path / "b.arrow").write_bytes(b"ARROW1\0\0" + b"\0" * 50)
  for name in ("a.parquet", "b.arrow"):
    with pytest.raises(UserError, match=f"{name} is not a readable") as error:
      list(read_source(str(tmp_path / name), {}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("opener", (pa.ipc.new_stream, pa.ipc.new_file))
def test_arrow_files_of_both_kinds(tmp_path, opener):
  table = pa.table({"when": column(pa.timestamp("s")), **TEXTS})
  with opener(str(tmp_path / "a.arrow"), table.schema) as writer:
    writer.write_table(table, max_chunksize=1)
  rows = list(read_source(str(tmp_path / "a.arrow"), {}))
  assert [row_id for row_id, _ in rows] == ["a.arrow:1", "a.arrow:2"]
  assert rows[1][1] == {"when": UNREAD, "prompt": "q1", "chosen": "b", "rejected": "d"}
  assert dict(read_rows(str(tmp_path / "a.arrow"), ()))["a.arrow:1"] == dict.fromkeys(
    ("when", *TEXTS), UNREAD
  )


AWKWARD = ['say "hi"\nthen, leave', "a\tb;c", "é" * 200_000, ""]


@pytest.mark.parametrize("name", ("a.csv", "a.tsv", "a.csv.gz", "A.CSV"))
def test_what_a_spreadsheet_writes(tmp_path, name):
  out = io.StringIO(newline="")
  writer = csv.writer(out, dialect="excel-tab" if ".tsv" in name else "excel")
  writer.writerow(["prompt", "chosen", "rejected", "", "n"])
  writer.writerows([[text, "7", "", "x", "1"] for text in AWKWARD])
  content = b"\xef\xbb\xbf" + out.getvalue().encode()
  (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
  rows = list(read_source(str(tmp_path / name), {}))
  assert rows == [
    (
      f"{name}:{i}",
      {"prompt": text or None, "chosen": "7", "rejected": None, "": UNREAD, "n": UNREAD},
    )
    for i, text in enumerate(AWKWARD, start=1)
  ]


@pytest.mark.parametrize(
  "content, says",
  [
    (b"prompt,chosen\n", "has no rows"),
    (b"", "has no rows"),
    (b"prompt;chosen\na;b\n", "apart by ';', not ','; save it with ','"),
    (b"prompt\tchosen\na\tb\n", "name it .tsv"),
    (b"prompt,prompt\na,b\n", "two columns named 'prompt'"),
    (b"prompt,chosen\na,b\na,b,c\n", "line 3: a row of 3 values, .* 2 columns"),
    (b'prompt,chosen\n"a" b,c\n', "line 2: "),
    (b'prompt,chosen\n"a,c\n', "line 2: "),
    (b"prompt,chosen\n\xff,c\n", "not UTF-8"),
  ],
)
def test_a_csv_that_is_none_says_where(tmp_path, content, says):
  (tmp_path / "a.csv").write_bytes(content)
  with pytest.raises(UserError, match=says) as error:
    list(read_source(str(tmp_path / "a.csv"), {}))
  assert "\n" not in str(error.value) and "a.csv" in str(error.value)


def test_zstandard_in_several_frames(tmp_path):
  lines = b"".join(b'{"a": %d}\n' % i for i in range(3000))
  (tmp_path / "a.jsonl.zst").write_bytes(zstd(lines[:7001]) + zstd(lines[7001:]))
  (tmp_path / "a.json.zst").write_bytes(zstd(json.dumps([{"a": 1}]).encode()))
  rows = [row for _, row in read_rows(str(tmp_path / "a.jsonl.zst"))]
  assert rows == [{"a": i} for i in range(3000)]
  assert [row for _, row in read_rows(str(tmp_path / "a.json.zst"))] == [{"a": 1}]
  assert len(list(open_lines(tmp_path / "a.jsonl.zst"))) == 3000
  for content in (zstd(lines)[:-9], b"not zstandard"):
    (tmp_path / "b.jsonl.zst").write_bytes(content)
    with pytest.raises(UserError, match="b.jsonl.zst cannot be read .*is it complete"):
      assert Malformed not in map(type, dict(read_rows(str(tmp_path / "b.jsonl.zst"))).values())
