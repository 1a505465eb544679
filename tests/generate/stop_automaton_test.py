"""Stop tokens and stop strings: the automaton against searching the text."""

import re

import numpy as np
import pytest

from simpo_jax.errors import UserError
from simpo_jax.generate.stop_automaton import STOPPED, before_stop, stop_automaton
from simpo_jax.tokenizer.byte_vocab import SPECIAL_IDS
from simpo_jax.tokenizer.load import load_tokenizer
from simpo_jax.tokenizer.tokenizer import byte_tokenizer
from support.real_model import smollm2_gguf
from support.tiers import sweep


def _ends(table, tokens):
  """Tokens up to the one that stops, or None if none does."""
  state = 0
  for n, token in enumerate(tokens, 1):
    state = table[state, token]
    if state == STOPPED:
      return n
  return None


def _search(strings, end_ids, spelled, tokens):
  text = b""
  for n, token in enumerate(tokens, 1):
    text += spelled[token]
    if token in end_ids or any(s.encode() in text for s in strings):
      return n
  return None


@pytest.mark.parametrize(
  "strings", (("a",), ("ab", "ba"), ("aab", "ab", "b"), ("abab", "bb"), ("abcab", "ca"), ())
)
def test_equals_searching_the_text(strings):
  rng = np.random.default_rng(0)
  spelled = [b"", *(bytes(rng.choice(list(b"abc"), rng.integers(1, 5))) for _ in range(30))]
  table = stop_automaton(len(spelled), (7,), strings, spelled)
  assert table.dtype == np.int16
  ends = []
  for _ in range(300):
    tokens = rng.integers(0, len(spelled), 12)
    ends.append(_ends(table, tokens))
    assert ends[-1] == _search(strings, (7,), spelled, tokens)
  assert len(set(ends)) > 2


@pytest.mark.parametrize("strings", (("a",), ("ab", "ba"), ("bc", "abcd"), ("bc", "abc"), ()))
def test_the_text_before_the_string_that_is_complete_first(strings):
  """As if tokens were characters: what follows in the last token does not matter."""
  rng = np.random.default_rng(1)
  for _ in range(300):
    text = "".join(rng.choice(list("abcd"), 9))
    prefixes = (text[:n] for n in range(len(text) + 1))
    found = next((p for p in prefixes if p.endswith(strings or ("x",))), None)
    lengths = [len(s) for s in strings if found is not None and found.endswith(s)]
    expected = text if found is None else found[: len(found) - max(lengths)]
    assert before_stop(text, strings) == expected


def test_without_strings_there_is_one_state():
  table = stop_automaton(5, (2, 9))  # 9 is no token of this model
  assert table.tolist() == [[0, 0, STOPPED, 0, 0]]


@pytest.mark.model
@sweep("text", ("🙂", "User:", "\n\n", "déjà vu", "<|im_start|>", "  ", "日本"))
def test_a_real_tokenizer_stops_where_the_text_does(text):
  tokenizer = load_tokenizer(str(smollm2_gguf()))
  table = stop_automaton(tokenizer.vocab_size, (), (text,), tokenizer.token_bytes())
  for before, after in (("Hello, ", " and more"), ("x", "x"), ("\n", ""), ("A b c ", "\n")):
    plain = tokenizer.encode(tokenizer.escape(before + text + after))
    end = _ends(table, plain)
    assert end is not None
    spelled = [b"".join(tokenizer.token_bytes()[i] for i in plain[:n]) for n in (end - 1, end)]
    assert text.encode() in spelled[1] and text.encode() not in spelled[0]
    assert _ends(table, tokenizer.encode("Nothing to see here. 123")) is None


@pytest.mark.model
def test_the_bytes_of_a_real_vocabulary_spell_what_it_decodes():
  tokenizer = load_tokenizer(str(smollm2_gguf()))
  spelled = tokenizer.token_bytes()
  assert len(spelled) == tokenizer.vocab_size
  text = "It's 12 o'clock — naïve café, 日本語 🙂\n\n\tdef f(x): return x**2  # ok"
  ids = tokenizer.encode(text)
  assert b"".join(spelled[i] for i in ids).decode() == text
  assert spelled[tokenizer.eos_ids[0]] == b"<|im_end|>"


def test_the_byte_tokenizer_spells_bytes_and_the_names_of_special_tokens():
  spelled = byte_tokenizer().token_bytes()
  assert b"".join(spelled[i] for i in byte_tokenizer().encode("añ")) == "añ".encode()
  assert all(spelled[i].decode() == name for name, i in SPECIAL_IDS.items())


@pytest.mark.parametrize(
  "strings,message", ((("a", ""), "empty string"), (("x" * 300,), "more than 256 bytes"))
)
def test_strings_that_cannot_be_used(strings, message):
  with pytest.raises(UserError, match=re.escape("--config.generate.stop") + ".*" + message):
    stop_automaton(3, (), strings, [b"a", b"b", b"c"])
