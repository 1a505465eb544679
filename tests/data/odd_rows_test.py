"""Odd but plausible rows: a pair or a true refusal, and nothing of a row is lost in silence."""

import json
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from simpo_jax.data.pairs import load_pairs
from simpo_jax.data.prepared.records import to_record, to_row
from simpo_jax.data.prompts import load_prompts
from simpo_jax.data.rows.formats import check_texts, to_conversation, to_prompt
from simpo_jax.data.rows.read import split_answers
from simpo_jax.data.rows.reasons import REASONS, SkipRow
from simpo_jax.data.tokenize_pairs import encode_pair, read_pairs
from simpo_jax.errors import UserError, one_line
from simpo_jax.settings import DataSettings, GenerateSettings
from simpo_jax.tokenizer.load import load_tokenizer
from support.chat_templates import save_folder
from support.odd_rows import odd_row
from support.tiers import size

KINDS = ("embedded", "chatml", "llama-2", "qwen-3", "mistral-v0.3")
COUNT = 5000 // len(KINDS)  # with the slow tests; a tenth of them without
MARK = re.compile(r"mk\d+x")
PARTLY = "that the chat template shows only in part or not at all"
DATA = DataSettings(max_length=4096, max_prompt_length=2048, max_skip_fraction=1.0)


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
  """(tokenizer, its rows)."""
  source, place = request.param, KINDS.index(request.param)
  if source != "embedded":
    source = str(save_folder(source, tmp_path_factory.mktemp("tokenizer")))
  rows = [odd_row(0, len(KINDS) * i + place) for i in range(size(COUNT))]
  return load_tokenizer(source, "2026-11-23T23:59:30"), rows


def marks(value, path=()):
  """(mark, the names that lead to it) of every text of a row."""
  if isinstance(value, str):
    try:
      inside = json.loads(value)
    except ValueError:
      inside = None
    if not isinstance(inside, (list, dict)):
      yield from ((mark, path) for mark in MARK.findall(value))
      return
    value = inside
  if isinstance(value, (list, dict)):
    for name, inner in value.items() if isinstance(value, dict) else ((None, v) for v in value):
      yield from marks(inner, path if name is None else (*path, str(name)))


def is_told(path, notes):
  """Whether a note names what leads to a mark, or says that such a message is not shown."""
  told = " ".join(notes)
  if path[-1] in ("system", "system_prompt") and f"a message by system {PARTLY}" in told:
    return True
  if path[-1] in ("content", "value", "text") and PARTLY in told:
    return True
  names = (re.escape(one_line(name)) for name in path if name.strip())
  return any(re.search(rf"(?<!\w){name}(?!\w)", told) for name in names)


def decoded(ids, tokenizer):
  return tokenizer.decode([i if i >= 0 else ~i for i in ids.tolist()])


def check_record(found):
  record = json.loads(json.dumps(to_record("f:1", found)))
  again = to_row(record)
  del again["id"]
  assert to_conversation(again)[:5] == found[:5]


@pytest.mark.parametrize("header", ["prompt", "response"])
def test_nothing_is_lost_in_silence(kind, header):
  tokenizer, rows = kind
  pairs, skips = 0, 0
  for row in rows:
    texts, notes, skip = [], [], None
    for _, part in split_answers("f:1", row):
      try:
        found = to_conversation(part)
        check_texts(found)
        check_record(found)
        assert to_prompt(part).prompt == found.prompt
        pair, more = encode_pair(found, tokenizer, header)
        texts += [decoded(ids, tokenizer) for ids in pair[1:]]
        notes += [*found.notes, *more]
        pairs += 1
      except SkipRow as error:
        skip = error
        assert skip.reason in REASONS and skip.detail.isprintable()
        skips += 1
    assert all(note.isprintable() for note in notes)
    for mark, path in marks(row):
      assert skip or any(mark in text for text in texts) or is_told(path, notes), (row, path)
  assert pairs > len(rows) / 3 and skips > len(rows) / 10


def has(row, *names):
  return any(row.get(n) is not None and row[n] == row[n] for n in names)  # NaN is not itself


def test_reasons_are_true(kind):
  """What can be told from the row by itself, without its reader."""
  prompts = ("prompt", "question", "instruction", "messages", "conversations")
  for part in (part for row in kind[1] for _, part in split_answers("f:1", row)):
    try:
      to_conversation(part)
    except SkipRow as skip:
      text = json.dumps(part)
      if skip.reason == "missing_field":
        assert not (has(part, "chosen") and has(part, "rejected") and has(part, *prompts))
        names = [n for n in part if has(part, n) and n.isprintable()]
        assert all(name in skip.detail for name in names)
      elif skip.reason == "not_unicode":
        assert re.search(r"\\+ud[89a-f]", text)
      elif skip.reason == "unknown_role":
        assert re.search(r'"(role|from)\\*": \\*("narrator|\d)', text)
      elif skip.reason in ("not_tools", "not_template_kwargs"):
        assert has(part, "tools" if skip.reason == "not_tools" else "chat_template_kwargs")


def outcomes(row, tokenizer):
  return [(r.skipped, r.notes, r.pair) for r in read_pairs("f:1", row, tokenizer, DATA)]


def same(a, b):
  return (a is None) == (b is None) and (
    a is None or all(np.array_equal(x, y) for x, y in zip(a[1:], b[1:], strict=True))
  )


def same_pairs(a, b):
  return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))


def write(path, rows):
  """Returns the rows as they are in the file; None if no table can hold them."""
  if path.suffix == ".jsonl":
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows
  try:
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, path)
  except (pa.ArrowException, UnicodeEncodeError):
    return None
  return table.to_pylist()


@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_files(kind, suffix, tmp_path):
  tokenizer, rows = kind
  path, count = tmp_path / f"a.{suffix}", 0
  for row in rows[: size(200)]:
    written = write(path, [row])
    if written is None:
      continue
    count, wanted = count + 1, outcomes(written[0], tokenizer)
    try:
      pairs, report = load_pairs(DATA, tokenizer, (str(path),), seed=0)
      assert same_pairs(pairs, [pair for _, _, pair in wanted if pair])
      told = {note for _, notes, _ in wanted for note in notes}
      # Whether a column that is not read holds anything is not known.
      blank = [name for name in row if not has(row, name)] if suffix != "jsonl" else []
      unread = {f"have a column {' '.join(name.split())}, which is not read" for name in blank}
      assert told <= set(report.notes) <= told | unread
    except UserError as error:
      assert str(error).isprintable() and all(skipped for skipped, _, _ in wanted)
    generate = GenerateSettings(prompts=str(path), count=0, max_prompt_length=4096)
    try:
      assert load_prompts(generate, tokenizer).prompts
    except UserError as error:
      assert str(error).isprintable()
  assert count > size(200) / 2


def bare(value):
  if isinstance(value, dict):
    return {name: bare(inner) for name, inner in value.items() if inner is not None}
  return [bare(inner) for inner in value] if isinstance(value, list) else value


def test_tables_change_nothing(kind, tmp_path):
  """A table fills rows with None for what only other rows have."""
  tokenizer, rows = kind
  compared = 0
  for two in zip(rows[::2], rows[1::2], strict=False):
    for row, filled in zip(two, write(tmp_path / "a.parquet", two) or two, strict=True):
      if filled is not row and bare(filled) == bare(row):
        before, after = outcomes(row, tokenizer), outcomes(filled, tokenizer)
        assert [o[0] for o in before] == [o[0] for o in after]
        assert same_pairs([o[2] for o in before], [o[2] for o in after])
        compared += 1
  assert compared > len(rows) / 20
