"""Model files that nobody vouches for are read or refused: no crash, no hang, no memory, no NaN.

Valid files of every kind (`model_files`), damaged where their format has meaning and anywhere
(`fuzz_damage`), are read by a process under hard limits (`fuzz_child`).
"""

import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simpo_jax.errors import UserError
from simpo_jax.tokenizer.chat_template import TemplateFailed, render
from support import tiny_model_files as valid
from support.fuzz_child import reading
from support.fuzz_damage import EXTREMES, damaged_bytes, damaged_fields, damaged_json, examples
from support.tiny_model_files import gguf, json_text, safetensors

VALID = {
  "config": {"config.json": json_text(valid.CONFIG)},
  "weights": valid.WEIGHTS,
  "gguf": {"m.gguf": gguf(valid.GGUF_HEADER)},
  "tokenizer": valid.TOKENIZER_FILES,
  "gguf tokenizer": {"m.gguf": gguf(valid.GGUF_HEADER)},
}
linux = pytest.mark.skipif(sys.platform != "linux", reason="the limit of memory is Linux's")


@pytest.fixture(scope="module")
def read():
  with reading(VALID) as read:
    yield read


def check(read, kind, files):
  outcome, words = read(kind, files)
  assert outcome in ("read", "refused"), words
  assert words.isprintable() and len(words) < 5000


def damaged_file(value):
  """A file of JSON, damaged in its meaning or in its bytes, or none at all."""
  return st.one_of(
    damaged_json(value).map(json_text),
    damaged_json(value).map(json_text),
    damaged_bytes(json_text(value)),
    EXTREMES,
  )


# --- config.json -------------------------------------------------------------------------

_CONFIGS = st.one_of(
  damaged_file(valid.CONFIG),
  damaged_file({**valid.CONFIG, "model_type": "mistral", "sliding_window": 32}),
  damaged_file({**valid.CONFIG, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}),
)


@linux
@examples(1000)
@given(config=_CONFIGS)
@example(config=json_text({**valid.CONFIG, "head_dim": 2**31 - 2}))
def test_configs(read, config):
  check(read, "config", {"config.json": config})


# --- safetensors -------------------------------------------------------------------------

_LENGTHS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from((2**25, 2**25 + 1, 10**8, 2**63)))
_SAFETENSORS = st.one_of(
  damaged_json(valid.HEADER).map(safetensors),
  st.builds(safetensors, damaged_json(valid.HEADER), st.integers(0, 2 * valid.SIZE)),
  st.builds(safetensors, st.just(valid.HEADER), st.just(valid.SIZE), _LENGTHS),
  st.builds(safetensors, damaged_file(valid.HEADER)),
  damaged_bytes(valid.WEIGHTS["model.safetensors"]),
)


@linux
@examples(1000)
@given(data=_SAFETENSORS)
def test_safetensors(read, data):
  check(read, "weights", {**valid.WEIGHTS, "model.safetensors": data})


@linux
@examples(1000)
@given(index=damaged_file(valid.INDEX))
def test_shard_indices(read, index):
  check(read, "weights", {**valid.SHARDED, valid.INDEX_NAME: index})


# --- GGUF --------------------------------------------------------------------------------

_SHAPES = st.lists(
  st.sampled_from((0, 1, 16, valid.D, valid.V, 2**20, 2**40, 2**63)), max_size=5
).map(tuple)
_TEXTS = st.sampled_from(
  ("", "llama", "qwen3", "linear", "yarn", "a\nb", "\x1b[2J", b"\xff", "x" * 5000)
)
_VALUES = st.one_of(
  st.tuples(st.just("I"), st.sampled_from((0, 1, 2, 3, 16, 31, 2**20, 2**31, 2**32 - 1))),
  st.tuples(st.just("i"), st.integers(-(2**31), 2**31 - 1)),
  st.tuples(st.just("f"), st.floats(width=32)),
  st.tuples(st.just("s"), _TEXTS),
  st.tuples(st.just("[s"), st.lists(_TEXTS, max_size=3)),
  st.tuples(st.just("[i"), st.lists(st.integers(-3, 60), max_size=50)),
)
_MORE_NAMES = (
  "llama.rope.scaling.type",
  "llama.rope.scaling.factor",
  "llama.attention.key_length",
  "llama.attention.sliding_window",
  "llama.vocab_size",
  "split.count",
  "general.file_type",
)


@st.composite
def other_models(draw):
  """Whole GGUF files of other metadata or other tensors than the model's."""
  fields, tensors = list(valid.FIELDS), list(valid.TENSORS)
  names = [f[0] for f in fields] + list(_MORE_NAMES)
  for _ in range(draw(st.integers(1, 3))):
    action = draw(st.integers(0, 4))
    if action < 3:
      name = draw(st.sampled_from(names))
      fields = [f for f in fields if f[0] != name]
      if action:
        fields.append((name, *draw(_VALUES)))
    elif action == 3:
      name, shape, kind = tensors.pop(draw(st.integers(0, len(tensors) - 1)))
      tensors.append((name, draw(_SHAPES), draw(st.sampled_from((0, 1, 2, 8, 14, 24, 30)))))
    else:
      tensors.append(("rope_freqs.weight", (draw(st.sampled_from((8, 7, 2**20))),), valid.F32))
  return gguf(*valid.gguf_header(fields, tensors))


_GGUFS = st.one_of(
  other_models(),
  damaged_fields(valid.GGUF_HEADER).map(gguf),
  damaged_bytes(gguf(valid.GGUF_HEADER)),
)


@linux
@examples(1000)
@given(data=_GGUFS)
def test_gguf_headers(read, data):
  check(read, "gguf", {"m.gguf": data})


# --- tokenizers and chat templates -------------------------------------------------------

_PARTS = ("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder")


@st.composite
def tokenizer_folders(draw):
  """A tokenizer's folder with one of its files damaged."""
  name = draw(st.sampled_from(("tokenizer.json", *valid.TOKENIZER_FILES)))
  value = valid.TOKENIZER_VALUES[name]
  if name == "tokenizer.json" and draw(st.booleans()):  # else it is mostly its vocabulary
    part = draw(st.sampled_from(_PARTS))
    file = json_text({**value, part: draw(damaged_json(value[part]))})
  else:
    file = draw(damaged_file(value))
  return {**valid.TOKENIZER_FILES, name: file}


def _without_special_tokens():
  """The library panics on it."""
  processor = {**valid.TOKENIZER["post_processor"], "special_tokens": {}}
  file = json_text({**valid.TOKENIZER, "post_processor": processor})
  return {**valid.TOKENIZER_FILES, "tokenizer.json": file}


def _with_a_gap():
  """An id far beyond the number of tokens."""
  model = {**valid.TOKENIZER["model"], "vocab": {**valid.TOKENIZER["model"]["vocab"], "a": 10**9}}
  return {**valid.TOKENIZER_FILES, "tokenizer.json": json_text({**valid.TOKENIZER, "model": model})}


@linux
@examples(300)
@given(folder=tokenizer_folders())
@example(folder=_without_special_tokens())
@example(folder=_with_a_gap())
def test_tokenizers(read, folder):
  check(read, "tokenizer", folder)


@linux
@examples(100)
@given(data=_GGUFS)
def test_tokenizers_in_gguf(read, data):
  check(read, "gguf tokenizer", {"m.gguf": data})


_PIECES = st.sampled_from(
  (
    valid.TEMPLATE,
    "{% for m in messages %}",
    "{% endfor %}",
    "{% for i in range(9) %}",
    "{% if m %}",
    "{% else %}",
    "{% endif %}",
    "{% generation %}",
    "{% endgeneration %}",
    "{%- set x = messages[0] -%}",
    "{% set ns = namespace(a=[], __class__=1) %}",
    "{% set ns.a = messages %}",
    "{% macro f(x) %}",
    "{% endmacro %}",
    "{{ f(f) }}",
    "{% break %}",
    "{{ m.content }}",
    "{{ messages[-1]['content'].split('a')[9] }}",
    "{{ messages | tojson(indent=2) }}",
    "{{ x.__class__.__mro__ }}",
    "{{ '%99s' % eos_token }}",
    "{{ '{0.__class__}'.format(x) }}",
    "{{ raise_exception('no\\n') }}",
    "{{ strftime_now('%Y %') }}",
    "{{ dict(a=1) ~ undefined_thing }}",
    "{{ messages.append(1) }}",
    "{{ 1 / 0 }}",
    "{{ 7 ** 999 }}",
    "{{ 'a' * 999 }}",
    "{% include 'x' %}",
    "{% raw %}",
    "{# #}",
    "{{",
    "}}",
    "{%",
    "\ud800",
    "\x00",
    "<|im_start|>",
  )
)
_TEMPLATES = st.one_of(
  st.lists(_PIECES, max_size=8).map("".join),
  damaged_bytes(valid.TEMPLATE.encode()).map(lambda b: b.decode("latin-1")),
  st.lists(st.one_of(_PIECES, st.text(max_size=4)), max_size=5).map("".join),
)
_MESSAGES = st.lists(
  st.fixed_dictionaries({"role": st.text(max_size=3), "content": st.text(max_size=9)}), max_size=3
)


@examples(600)
@given(template=_TEMPLATES, messages=_MESSAGES)
def test_chat_templates(template, messages):
  variables = {"messages": messages, "eos_token": "</s>", "add_generation_prompt": True}
  try:
    text = render(template, variables, "here", "2026-11-24")
  except TemplateFailed as error:
    assert str(error)
  except UserError as error:
    assert "went beyond its limits" in str(error) or "is not valid Jinja" in str(error)
  else:
    text.encode()  # it can be written down
