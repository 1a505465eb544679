"""Whatever a row holds, it is a pair or a counted skip, never a crash; prompts likewise."""

import dataclasses
import json

from hypothesis import given
from hypothesis import strategies as st

from simpo_jax.data.pairs import load_pairs
from simpo_jax.data.prompts import SETTINGS, load_prompts
from simpo_jax.data.rows.formats import to_conversation
from simpo_jax.data.rows.reasons import REASONS, SkipRow
from simpo_jax.errors import UserError
from simpo_jax.settings import DataSettings, GenerateSettings
from simpo_jax.tokenizer.tokenizer import byte_tokenizer
from support.fuzz_damage import JUNK, examples
from support.pairs import tokenize_pair

BYTE = byte_tokenizer()
DATA = DataSettings(max_length=24, max_prompt_length=9, max_skip_fraction=1.0)

_TEXT = st.one_of(
  st.text(alphabet=st.characters(), max_size=8),
  st.sampled_from(["\n\nHuman: a\n\nAssistant: b", "\n\nHuman:", "\n\nAssistant:", "\ud800", ""]),
)
_ROLE = st.sampled_from(["user", "assistant", "system", "human", "gpt", "tool", None, 3])
_JUNK = st.recursive(
  st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), _TEXT),
  lambda x: st.one_of(st.lists(x, max_size=2), st.dictionaries(_TEXT, x, max_size=2)),
  max_leaves=4,
)
_MESSAGE = st.one_of(
  st.fixed_dictionaries({"role": _ROLE, "content": _TEXT}),
  st.fixed_dictionaries({"from": _ROLE, "value": _TEXT}),
  _JUNK,
)
_VALUE = st.one_of(_TEXT, st.lists(_MESSAGE, max_size=3), _MESSAGE, _JUNK)
_ROW = st.dictionaries(
  st.sampled_from(["prompt", "chosen", "rejected", "conversations", "system", "x"]), _VALUE
)


@examples(1000)
@given(row=_ROW, header=st.sampled_from(["prompt", "response"]))
def test_any_row_is_a_pair_or_a_skip(row, header):
  data = dataclasses.replace(DATA, header=header)
  try:
    pair = tokenize_pair(to_conversation(row), BYTE, data)
  except SkipRow as skip:
    assert skip.reason in REASONS
    return
  assert min(map(len, pair[1:])) >= 1
  assert len(pair.prompt) + max(len(pair.chosen), len(pair.rejected)) <= data.max_length


@examples(100)
@given(rows=st.lists(st.one_of(_ROW, _JUNK, st.binary(max_size=9)), max_size=5))
def test_any_file_is_read_or_refused(tmp_path, rows):
  lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
  (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
  try:
    pairs, report = load_pairs(DATA, BYTE, (str(tmp_path / "a.jsonl"),), seed=0)
  except UserError as error:
    assert "\n" not in str(error)
    return
  assert report.kept == len(pairs) == report.total - sum(report.skipped.values())


_PROMPT = st.one_of(
  st.fixed_dictionaries(
    {"prompt": _TEXT}, optional={name: st.one_of(JUNK, st.floats()) for name in SETTINGS}
  ),
  st.fixed_dictionaries({"messages": st.lists(_MESSAGE, max_size=3)}),
  _JUNK,
)


@examples(200)
@given(rows=st.lists(st.one_of(_PROMPT, st.binary(max_size=9)), max_size=3))
def test_any_prompts_are_read_or_refused(tmp_path, rows):
  lines = [r if isinstance(r, bytes) else json.dumps(r).encode() for r in rows]
  (tmp_path / "a.jsonl").write_bytes(b"\n".join(lines))
  generate = GenerateSettings(prompts=str(tmp_path / "a.jsonl"), count=0)
  try:
    prompts = load_prompts(generate, BYTE).prompts
  except UserError as error:
    assert str(error).isprintable()
    return
  for prompt in prompts:
    assert len(prompt.tokens) and prompt.text.strip()
    assert all(abs(value) < 2**31 for value in prompt.settings.values())  # false for NaN
