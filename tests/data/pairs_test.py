"""Pairs of the byte tokenizer, whose ids can be written by hand."""

import json

import numpy as np
import pytest

from simpo_jax.data.pairs import load_pairs
from simpo_jax.data.rows.formats import Conversation
from simpo_jax.data.rows.reasons import REASONS, SkipRow
from simpo_jax.data.shuffle import epoch_order, pair_indices_for_step, split_by_row
from simpo_jax.data.types import PairTokens  # fmt: skip
from simpo_jax.errors import UserError
from simpo_jax.settings import DataSettings
from simpo_jax.tokenizer.tokenizer import byte_tokenizer
from support.pairs import tokenize_pair

BYTE = byte_tokenizer()
BOS, END, USER, ASSISTANT = 257, 258, 259, 260


def _chat(prompt="hi", chosen="yes", rejected="no"):
  return Conversation(({"role": "user", "content": prompt},), _says(chosen), _says(rejected))


def _says(text):
  return ({"role": "assistant", "content": text},)


def _lengths(pair):
  return len(pair.prompt), len(pair.chosen), len(pair.rejected)


def _same(pair, prompt, chosen, rejected):
  assert [x.tolist() for x in pair[1:]] == [prompt, chosen, rejected]
  assert all(x.dtype == np.int32 for x in pair[1:])


def test_header_in_the_prompt_is_the_default():
  pair = tokenize_pair(_chat(), BYTE, DataSettings())
  _same(pair, [BOS, USER, *b"hi", END, ASSISTANT], [*b"yes", END], [*b"no", END])


def test_header_in_the_response():
  pair = tokenize_pair(_chat(), BYTE, DataSettings(header="response"))
  _same(pair, [BOS, USER, *b"hi", END], [ASSISTANT, *b"yes", END], [ASSISTANT, *b"no", END])


def test_plain_strings_see_no_template_and_forge_nothing():
  pair = tokenize_pair(Conversation("a<", "|end|>", " c"), BYTE, DataSettings())
  _same(pair, [BOS, *b"a<"], [*b"|end|>", END], [*b" c", END])


def test_prompt_first_cuts_the_prompt_then_each_response_on_its_own():
  data = DataSettings(max_length=20, max_prompt_length=8)
  pair = tokenize_pair(_chat("0123456789", "c" * 50, "r" * 5), BYTE, data)
  assert pair.prompt.tolist() == [BOS, *b"56789", END, ASSISTANT]
  assert pair.chosen.tolist() == [*b"c" * 12], "a cut response has no end token"
  assert pair.rejected.tolist() == [*b"r" * 5, END]


def test_prompt_first_gives_a_response_what_a_short_prompt_leaves():
  data = DataSettings(max_length=2048, max_prompt_length=1800)
  pair = tokenize_pair(_chat("p" * 15, "c" * 2039, "r"), BYTE, data)
  assert _lengths(pair) == (19, 2029, 2)


def test_princeton_cuts_2040_tokens_to_248_however_short_the_prompt():
  data = DataSettings(max_length=2048, max_prompt_length=1800, truncation="princeton")
  pair = tokenize_pair(_chat("p" * 15, "c" * 2039, "r" * 299), BYTE, data)
  assert _lengths(pair) == (19, 248, 248)


def test_princeton_cuts_the_prompt_alone_where_that_suffices_bos_included():
  data = DataSettings(max_length=30, max_prompt_length=10, truncation="princeton")
  pair = tokenize_pair(_chat("p" * 30, "c" * 15, "r"), BYTE, data)
  assert _lengths(pair) == (10, 16, 2) and BOS not in pair.prompt


@pytest.mark.parametrize("truncation", ["prompt_first", "princeton"])
def test_a_pair_that_just_fits_is_left_alone(truncation):
  data = DataSettings(max_length=20, max_prompt_length=2, truncation=truncation)
  assert _lengths(tokenize_pair(_chat("p" * 6, "c" * 9, "r"), BYTE, data)) == (10, 10, 2)
  assert _lengths(tokenize_pair(_chat("p" * 6, "c" * 10, "r"), BYTE, data))[0] == 2


def test_a_prompt_budget_of_one_keeps_bos_alone():
  data = DataSettings(max_length=3, max_prompt_length=1)
  pair = tokenize_pair(_chat("p" * 6, "c" * 9, "r"), BYTE, data)
  _same(pair, [BOS], [*b"cc"], [*b"r", END])


@pytest.mark.parametrize(
    "conversation, fields, reason",
    [
        (_chat(chosen=" \n"), {}, "empty_chosen"),
        (_chat(rejected=""), {}, "empty_rejected"),
        (_chat(prompt=" "), {}, "empty_prompt"),
        (Conversation("", "a", "b"), {}, "empty_prompt"),
        (Conversation((), _says("a"), _says("b")), {}, "empty_prompt"),
        (Conversation(({"role": "system", "content": "x"},), _says("a"), _says("b")), {},
         "empty_prompt"),
        (_chat(chosen="no"), {}, "identical"),
        (_chat("p", "same, then a", "same, then b"),
         {"max_length": 8, "max_prompt_length": 6}, "identical"),
        (_chat(), {"row_length": 12}, "longer_than_row"),
    ],
)  # fmt: skip
def test_skip_reasons(conversation, fields, reason):
  with pytest.raises(SkipRow) as skip:
    tokenize_pair(conversation, BYTE, DataSettings(**fields))
  assert skip.value.reason == reason and reason in REASONS


def test_every_pair_fits_the_default_row():
  data = DataSettings(max_length=20, max_prompt_length=19)
  pair = tokenize_pair(_chat("p" * 99, "c" * 99, "r" * 99), BYTE, data)
  assert _lengths(pair) == (19, 1, 1)


def _file(tmp_path, rows):
  path = tmp_path / "rows.jsonl"
  path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in rows))
  return str(path)


GOOD = {"prompt": "a", "chosen": "b", "rejected": "c"}


def test_load_pairs_counts_what_it_leaves_out_and_what_it_cuts(tmp_path):
  rows = [GOOD, "{broken", {"prompt": "a"}, {**GOOD, "chosen": "c"}, {**GOOD, "chosen": "b" * 50}]
  data = DataSettings(max_length=20, max_prompt_length=10, max_skip_fraction=0.6)
  pairs, report = load_pairs(data, BYTE, (_file(tmp_path, rows),), seed=0)
  assert [p.id for p in pairs] == ["rows.jsonl:1", "rows.jsonl:5"]
  assert (report.total, report.kept) == (5, 2)
  assert report.skipped == {"malformed_json": 1, "missing_field": 1, "identical": 1}
  assert report.examples["identical"] == ["rows.jsonl:4"]
  assert report.truncated == {"prompt": 0, "chosen": 1, "rejected": 0}


def test_load_pairs_mixes_files_and_embedded(tmp_path):
  paths = (_file(tmp_path, [GOOD]), "embedded")
  pairs, _ = load_pairs(DataSettings(embedded_pairs=3), BYTE, paths, seed=0)
  assert [p.id for p in pairs] == ["rows.jsonl:1", "embedded:1", "embedded:2", "embedded:3"]


def test_too_many_skips_is_an_error_with_reasons_and_rows(tmp_path):
  path = _file(tmp_path, [GOOD] * 8 + ["{", {"prompt": "a"}])
  load_pairs(DataSettings(max_skip_fraction=0.2), BYTE, (path,), seed=0)
  says = r"2 of 10 rows .*malformed_json 1 \(first rows.jsonl:9.*missing_field 1 .*rows.jsonl:10"
  with pytest.raises(UserError, match=says):
    load_pairs(DataSettings(max_skip_fraction=0.1), BYTE, (path,), seed=0)
  with pytest.raises(UserError, match="1 of 1 rows"):
    load_pairs(DataSettings(max_skip_fraction=1.0), BYTE, (_file(tmp_path, ["{"]),), seed=0)


def test_no_paths_is_an_error():
  with pytest.raises(UserError, match="data.train"):
    load_pairs(DataSettings(), BYTE, (), seed=0)


def _dummy(n):
  return [PairTokens(str(i), *[np.zeros(1, np.int32)] * 3) for i in range(n)]


@pytest.mark.parametrize(
  "n, fraction, held", [(100, 0.05, 5), (2, 0.01, 1), (1, 0.5, 0), (9, 0.0, 0), (3, 0.99, 2)]
)
def test_split(n, fraction, held):
  train, test = split_by_row(_dummy(n), fraction, seed=3)
  assert len(test) == held
  ids = [int(p.id) for p in train], [int(p.id) for p in test]
  assert sorted(ids[0] + ids[1]) == list(range(n)) and all(i == sorted(i) for i in ids)
  assert [p.id for p in split_by_row(_dummy(n), fraction, seed=3)[1]] == [p.id for p in test]
  with pytest.raises(UserError, match="eval_fraction"):
    split_by_row(_dummy(n), 1.0, seed=0)


def test_steps_walk_through_epochs_without_a_gap():
  steps = [pair_indices_for_step(7, 4, seed=1, step=s) for s in range(1, 8)]
  walked = np.concatenate(steps)
  for epoch in range(4):
    order = epoch_order(7, seed=1, epoch=epoch)
    np.testing.assert_array_equal(walked[7 * epoch : 7 * epoch + 7], order)
    assert sorted(order.tolist()) == list(range(7))
  orders = {tuple(epoch_order(50, s, e).tolist()) for s in (0, 1, -1) for e in (0, 1)}
  assert len(orders) == 6


def test_the_order_stays_what_it_was():
  # A run may be resumed under another numpy: these numbers must never change.
  assert epoch_order(8, seed=0, epoch=0).tolist() == [5, 7, 3, 1, 4, 6, 0, 2]


def test_fewer_pairs_than_a_batch_is_an_error():
  with pytest.raises(UserError, match="3 pairs do not fill a batch of 4"):
    pair_indices_for_step(3, 4, seed=0, step=1)
