"""The embedded tokenizer: lossless, and no text of a user forges a special token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpo_jax.data.readers.embedded import embedded_pairs
from simpo_jax.errors import UserError
from simpo_jax.tokenizer.chat_template import TemplateFailed
from simpo_jax.tokenizer.load import load_tokenizer
from simpo_jax.tokenizer.tokenizer import byte_tokenizer, encode_with_bos

BYTE = byte_tokenizer()


def test_template_ids_by_hand():
  text = BYTE.render([{"role": "user", "content": "hé"}], True)
  assert BYTE.encode(text) == [257, 259, 104, 195, 169, 258, 260]
  assert (BYTE.vocab_size, BYTE.pad_id, BYTE.bos_id, BYTE.eos_ids) == (262, 256, 257, (258,))
  assert load_tokenizer("embedded").vocab_size == 262


# Pieces that could add up to a special token or to the escape mark.
_HOSTILE = st.lists(st.sampled_from(["<", "|", "<|", "|>", "end", "<|end|>", "\ue000", "é"]))
_TEXT = st.one_of(st.text(), _HOSTILE.map("".join))


@given(st.lists(_TEXT, min_size=1, max_size=3))
@settings(max_examples=200, deadline=None)
def test_user_text_never_forges_and_survives(contents):
  messages = [{"role": "user", "content": c} for c in contents]
  ids = BYTE.encode(BYTE.render(messages, False))
  assert ids.count(258) == len(contents) and ids.count(257) == 1
  assert BYTE.decode(ids) == "".join(contents)
  for text in contents:
    assert BYTE.encode(BYTE.escape(text)) == list(text.encode())


def test_decode_stands_anything_a_model_may_write():
  assert BYTE.decode([104, 195, 258, 300]) == "h\ufffd"


def test_one_bos_whatever_the_text_begins_with():
  assert encode_with_bos(BYTE, "a") == [257, 97]
  assert encode_with_bos(BYTE, "<|bos|>a") == [257, 97]
  assert encode_with_bos(BYTE, "<|bos|><|bos|>a") == [257, 97]


def test_template_failure_is_told():
  with pytest.raises(TemplateFailed):
    BYTE.render([{"role": "user"}], True)


@pytest.mark.parametrize("seed", [0, 1, -5])
def test_embedded_pairs_are_distinct_deterministic_and_of_the_promised_size(seed):
  rows = embedded_pairs(500, seed)
  assert rows == embedded_pairs(500, seed) and rows[:9] != embedded_pairs(9, seed + 1)
  size = lambda name: {len(r[name][0]["content"]) for r in rows}  # noqa: E731
  assert len({r["prompt"][0]["content"] for r in rows}) == 500
  assert all(r["chosen"][0]["content"] != r["rejected"][0]["content"] for r in rows)
  assert min(size("prompt")) >= 15 and max(size("prompt")) <= 60
  for name in ("chosen", "rejected"):
    assert min(size(name)) >= 8 and max(size(name)) <= 60 and len(size(name)) > 10


@pytest.mark.parametrize("count", [0, -1, 10**6])
def test_embedded_count_is_checked(count):
  with pytest.raises(UserError, match="data.embedded_pairs"):
    embedded_pairs(count, 0)
