"""Model files that nobody vouches for are read or refused: no crash, no hang, no memory, no NaN.

Valid files of every kind, damaged where their format has meaning (`fuzz_damage`) and anywhere,
are read by a process under hard limits (`fuzz_child`).
"""

import math
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fuzz_child import reading
from fuzz_damage import (
  EXTREMES,
  damaged_bytes,
  damaged_fields,
  damaged_json,
  examples,
  json_text,
  packed,
)
from simpo_jax.data.template import TemplateFailed, render
from simpo_jax.errors import UserError

# --- config.json -------------------------------------------------------------------------

D, H, F, V = 32, 2, 32, 40
CONFIG = {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": V,
  "hidden_size": D,
  "intermediate_size": F,
  "num_hidden_layers": 1,
  "num_attention_heads": H,
  "num_key_value_heads": 1,
  "head_dim": 16,
  "hidden_act": "silu",
  "rms_norm_eps": 1e-5,
  "rope_theta": 10000.0,
  "rope_scaling": {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
  },
  "max_position_embeddings": 64,
  "tie_word_embeddings": True,
  "attention_bias": False,
  "mlp_bias": False,
}
_CONFIGS = st.one_of(
  damaged_json(CONFIG).map(json_text),
  damaged_json({**CONFIG, "model_type": "mistral", "sliding_window": 32}).map(json_text),
  damaged_json({**CONFIG, "rope_parameters": {"rope_type": "linear", "factor": 2.0}}).map(
    json_text
  ),
  damaged_bytes(json_text(CONFIG)),
  EXTREMES,
)


@examples(1000)
@given(config=_CONFIGS)
def test_configs(read, config):
  check(read, "config", {"config.json": config})


# --- safetensors -------------------------------------------------------------------------


def header_of(shapes):
  header, end = {"__metadata__": {"format": "pt"}}, 0
  for name, shape in shapes.items():
    size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
    header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
    end += size
  return header, end


_LAYER = "model.layers.0."
SHAPES = {
  "model.embed_tokens.weight": (V, D),
  "model.norm.weight": (D,),
  _LAYER + "input_layernorm.weight": (D,),
  _LAYER + "post_attention_layernorm.weight": (D,),
  _LAYER + "self_attn.q_proj.weight": (D, D),
  _LAYER + "self_attn.k_proj.weight": (16, D),
  _LAYER + "self_attn.v_proj.weight": (16, D),
  _LAYER + "self_attn.o_proj.weight": (D, D),
  _LAYER + "mlp.gate_proj.weight": (F, D),
  _LAYER + "mlp.up_proj.weight": (F, D),
  _LAYER + "mlp.down_proj.weight": (D, F),
}
HEADER, SIZE = header_of(SHAPES)


def safetensors(header, size=SIZE, length=None) -> bytes:
  text = header if isinstance(header, bytes) else json_text(header)
  return struct.pack("<Q", len(text) if length is None else length) + text + bytes(size)


WEIGHTS = {"config.json": json_text(CONFIG), "model.safetensors": safetensors(HEADER)}
_LENGTHS = st.one_of(st.integers(0, 2**64 - 1), st.sampled_from((2**25, 2**25 + 1, 10**8, 2**63)))
_SAFETENSORS = st.one_of(
  damaged_json(HEADER).map(safetensors),
  st.builds(safetensors, damaged_json(HEADER), st.integers(0, 2 * SIZE)),
  st.builds(safetensors, st.just(HEADER), st.just(SIZE), _LENGTHS),
  st.builds(safetensors, st.one_of(damaged_bytes(json_text(HEADER)), EXTREMES)),
  damaged_bytes(WEIGHTS["model.safetensors"]),
)


@examples(1000)
@given(data=_SAFETENSORS)
def test_safetensors(read, data):
  check(read, "weights", {**WEIGHTS, "model.safetensors": data})


_NAMES = sorted(SHAPES)
_SHARDS = {
  f"model-0000{i}-of-00002.safetensors": safetensors(*header_of({n: SHAPES[n] for n in names}))
  for i, names in ((1, _NAMES[:5]), (2, _NAMES[5:]))
}
INDEX = {
  "metadata": {"total_size": SIZE},
  "weight_map": {n: list(_SHARDS)[i >= 5] for i, n in enumerate(_NAMES)},
}
_INDICES = st.one_of(damaged_json(INDEX).map(json_text), damaged_bytes(json_text(INDEX)), EXTREMES)


@examples(1000)
@given(index=_INDICES)
def test_shard_indices(read, index):
  name = "model.safetensors.index.json"
  check(read, "weights", {"config.json": WEIGHTS["config.json"], **_SHARDS, name: index})


# --- GGUF --------------------------------------------------------------------------------


def _string(text):
  data = text if isinstance(text, bytes) else text.encode()
  return [("Q", len(data)), ("s", data)]


_SCALARS = {"I": 4, "i": 5, "f": 6}  # the format's numbers of types
_STRING, _ARRAY = 8, 9


def _field(name, layout, value):
  start = _string(name)
  if layout == "s":
    return [*start, ("I", _STRING), *_string(value)]
  if layout in _SCALARS:
    return [*start, ("I", _SCALARS[layout]), (layout, value)]
  kind = layout[1]  # "[s", "[i": an array
  items = [f for v in value for f in (_string(v) if kind == "s" else [(kind, v)])]
  of = _STRING if kind == "s" else _SCALARS[kind]
  return [*start, ("I", _ARRAY), ("I", of), ("Q", len(value)), *items]


_TOKENS = ["<s>", "</s>", *"abcdefgh", "ab", "\u0120", *map(str, range(V - 12))]
_FIELDS = (
  ("general.architecture", "s", "llama"),
  ("general.alignment", "I", 32),
  ("llama.context_length", "I", 64),
  ("llama.embedding_length", "I", D),
  ("llama.feed_forward_length", "I", F),
  ("llama.block_count", "I", 1),
  ("llama.attention.head_count", "I", H),
  ("llama.attention.head_count_kv", "I", 1),
  ("llama.attention.layer_norm_rms_epsilon", "f", 1e-5),
  ("llama.rope.freq_base", "f", 10000.0),
  ("tokenizer.ggml.model", "s", "gpt2"),
  ("tokenizer.ggml.tokens", "[s", _TOKENS),
  ("tokenizer.ggml.token_type", "[i", [3, 3] + [1] * (V - 2)),
  ("tokenizer.ggml.merges", "[s", ["a b"]),
  ("tokenizer.ggml.bos_token_id", "I", 0),
  ("tokenizer.ggml.eos_token_id", "I", 1),
  ("tokenizer.chat_template", "s", "{% for m in messages %}{{ m.content }}{% endfor %}"),
)
_F32, _Q8_0 = 0, 8
_TENSORS = (
  ("token_embd.weight", (D, V), _Q8_0),
  ("output_norm.weight", (D,), _F32),
  ("blk.0.attn_norm.weight", (D,), _F32),
  ("blk.0.ffn_norm.weight", (D,), _F32),
  ("blk.0.attn_q.weight", (D, D), _Q8_0),
  ("blk.0.attn_k.weight", (D, 16), _F32),
  ("blk.0.attn_v.weight", (D, 16), _F32),
  ("blk.0.attn_output.weight", (D, D), _F32),
  ("blk.0.ffn_gate.weight", (D, F), _F32),
  ("blk.0.ffn_up.weight", (D, F), _F32),
  ("blk.0.ffn_down.weight", (F, D), _F32),
)


def gguf_fields(fields=_FIELDS, tensors=_TENSORS):
  """(binary fields of the header, bytes of the tensors behind it)."""
  out = [("s", b"GGUF"), ("I", 3), ("Q", len(tensors)), ("Q", len(fields))]
  for field in fields:
    out += _field(*field)
  end = 0
  for name, shape, kind in tensors:
    place = end % 2**64
    out += [
      *_string(name),
      ("I", len(shape)),
      *(("Q", n) for n in shape),
      ("I", kind),
      ("Q", place),
    ]
    count = math.prod(shape)
    end += 4 * count if kind == _F32 else count // 32 * 34
  return out, end


GGUF, GGUF_SIZE = gguf_fields()


def gguf(fields, size=GGUF_SIZE) -> bytes:
  header = packed(fields)
  return header + bytes(-len(header) % 32 + min(size, 2 * GGUF_SIZE))


_SHAPES = st.lists(st.sampled_from((0, 1, 16, D, V, 2**20, 2**40, 2**63)), max_size=5).map(tuple)
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
  fields, tensors = list(_FIELDS), list(_TENSORS)
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
      tensors.append(("rope_freqs.weight", (draw(st.sampled_from((8, 7, 2**20))),), _F32))
  return gguf(*gguf_fields(fields, tensors))


_GGUFS = st.one_of(
  other_models(),
  damaged_fields(GGUF).map(gguf),
  damaged_bytes(gguf(GGUF)),
)


@examples(1000)
@given(data=_GGUFS)
def test_gguf_headers(read, data):
  check(read, "gguf", {"m.gguf": data})


# --- tokenizers and chat templates -------------------------------------------------------

TEMPLATE = (
  "{% for m in messages %}{% if loop.first and m['role'] == 'system' %}{{ bos_token }}{% endif %}"
  "<|im_start|>{{ m.role + '\\n' }}{{ m.content | trim }}<|im_end|>\n{% endfor %}"
  "{% set ns = namespace(x=1) %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CHARS = [chr(i) for i in range(33, 127)] + ["\u0120", "\u010a"]  # with GPT-2's space and newline
_SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TOKENIZER = {
  "version": "1.0",
  "truncation": None,
  "padding": None,
  "added_tokens": [
    {
      "id": i,
      "content": text,
      "single_word": False,
      "lstrip": False,
      "rstrip": False,
      "normalized": False,
      "special": True,
    }
    for i, text in enumerate(_SPECIAL)
  ],
  "normalizer": {"type": "NFC"},
  "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
  "post_processor": {
    "type": "TemplateProcessing",
    "single": [
      {"SpecialToken": {"id": "<s>", "type_id": 0}},
      {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
  },
  "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
  "model": {
    "type": "BPE",
    "dropout": None,
    "unk_token": None,
    "byte_fallback": False,
    "vocab": {t: i for i, t in enumerate([*_SPECIAL, *_CHARS, "ab"])},
    "merges": [["a", "b"]],
  },
}
TOKENIZER_CONFIG = {
  "bos_token": "<s>",
  "eos_token": "</s>",
  "pad_token": {"content": "</s>", "special": True, "__type": "AddedToken"},
  "additional_special_tokens": ["<|im_start|>"],
  "added_tokens_decoder": {"0": {"content": "<s>", "special": True}},
  "tokenizer_class": "PreTrainedTokenizerFast",
  "chat_template": TEMPLATE,
  "model_max_length": 64,
  "clean_up_tokenization_spaces": False,
}
GENERATION = {"eos_token_id": [1, 3], "temperature": 0.6}
_TOKENIZER_FILES = {
  "tokenizer.json": TOKENIZER,
  "tokenizer_config.json": TOKENIZER_CONFIG,
  "generation_config.json": GENERATION,
}
TOKENIZER_FOLDER = {name: json_text(value) for name, value in _TOKENIZER_FILES.items()}


@st.composite
def tokenizer_folders(draw):
  """One of the files damaged; it is mostly large enough for two to hide each other's damage."""
  name = draw(
    st.sampled_from(
      ("tokenizer.json", "tokenizer.json", "tokenizer_config.json", *TOKENIZER_FOLDER)
    )
  )
  value = _TOKENIZER_FILES[name]
  if name == "tokenizer.json" and draw(st.booleans()):  # its vocabulary is most of it, else
    part = draw(
      st.sampled_from(("added_tokens", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    )
    files = damaged_json(value[part]).map(lambda v: json_text({**value, part: v}))
  else:
    files = st.one_of(damaged_json(value).map(json_text), damaged_bytes(json_text(value)), EXTREMES)
  return {**TOKENIZER_FOLDER, name: draw(files)}


@examples(300)
@given(folder=tokenizer_folders())
def test_tokenizers(read, folder):
  check(read, "tokenizer", folder)


@examples(100)
@given(data=_GGUFS)
def test_tokenizers_in_gguf(read, data):
  check(read, "gguf tokenizer", {"m.gguf": data})


_PIECES = st.sampled_from(
  (
    TEMPLATE,
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
  damaged_bytes(TEMPLATE.encode()).map(lambda b: b.decode("latin-1")),
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
    text = render(template, variables, "here")
  except TemplateFailed as error:
    assert str(error)
  except UserError as error:
    assert "went beyond its limits" in str(error)
  else:
    assert text.encode()


# --- all of them are read, or refused ---

VALID = {
  "config": {"config.json": json_text(CONFIG)},
  "weights": WEIGHTS,
  "gguf": {"m.gguf": gguf(GGUF)},
  "tokenizer": TOKENIZER_FOLDER,
  "gguf tokenizer": {"m.gguf": gguf(GGUF)},
}


@pytest.fixture(scope="module")
def read():
  with reading(VALID) as read:
    yield read


def check(read, kind, files):
  outcome, words = read(kind, files)
  assert outcome in ("read", "refused"), words
  assert words.isprintable() and len(words) < 5000
  return outcome
