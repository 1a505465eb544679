"""The smallest valid files of a model, made here byte by byte: they can be damaged anywhere.

A Llama of one layer as a Hugging Face folder, in one safetensors file or in shards, as a GGUF
file, and its tokenizer. No library of these formats is needed, and none is imported.
"""

import json
import math
import struct
from typing import Any

D, F, V = 32, 32, 40  # model, ffn, vocabulary; two heads of 16 share one key/value head
CONFIG = {
  "architectures": ["LlamaForCausalLM"],
  "model_type": "llama",
  "vocab_size": V,
  "hidden_size": D,
  "intermediate_size": F,
  "num_hidden_layers": 1,
  "num_attention_heads": 2,
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


def json_text(value) -> bytes:
  """As a file of JSON has it; lone surrogates come out escaped."""
  return json.dumps(value).encode()


# --- safetensors -------------------------------------------------------------------------

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


def _header(shapes):
  """(the header of a file of these tensors, bytes of the tensors)."""
  header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
  end = 0
  for name, shape in shapes.items():
    size = 2 * math.prod(shape)
    header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + size]}
    end += size
  return header, end


HEADER, SIZE = _header(SHAPES)


def safetensors(header, size=SIZE, length=None) -> bytes:
  """A file; header: JSON, or the bytes to put in its place; length: what it claims to be."""
  text = header if isinstance(header, bytes) else json_text(header)
  return struct.pack("<Q", len(text) if length is None else length) + text + bytes(size)


WEIGHTS = {"config.json": json_text(CONFIG), "model.safetensors": safetensors(HEADER)}
_NAMES = sorted(SHAPES)
_SHARDS = {
  f"model-0000{i}-of-00002.safetensors": safetensors(*_header({n: SHAPES[n] for n in names}))
  for i, names in ((1, _NAMES[:5]), (2, _NAMES[5:]))
}
INDEX_NAME = "model.safetensors.index.json"
INDEX = {
  "metadata": {"total_size": SIZE},
  "weight_map": {n: list(_SHARDS)[i >= 5] for i, n in enumerate(_NAMES)},
}
SHARDED = {"config.json": json_text(CONFIG), **_SHARDS, INDEX_NAME: json_text(INDEX)}

# --- GGUF --------------------------------------------------------------------------------

_SCALARS = {"I": 4, "i": 5, "f": 6, "?": 7}  # the format's numbers of types
_STRING, _ARRAY = 8, 9
F32, Q8_0 = 0, 8
_TOKENS = ["<s>", "</s>", *"abcdefgh", "ab", "\u0120", *map(str, range(V - 12))]
FIELDS = (  # name, type ("[i" is an array of i), value
  ("general.architecture", "s", "llama"),
  ("general.alignment", "I", 32),
  ("llama.context_length", "I", 64),
  ("llama.embedding_length", "I", D),
  ("llama.feed_forward_length", "I", F),
  ("llama.block_count", "I", 1),
  ("llama.attention.head_count", "I", 2),
  ("llama.attention.head_count_kv", "I", 1),
  ("llama.attention.layer_norm_rms_epsilon", "f", 1e-5),
  ("llama.rope.freq_base", "f", 10000.0),
  ("tokenizer.ggml.model", "s", "gpt2"),
  ("tokenizer.ggml.pre", "s", "gpt-2"),
  ("tokenizer.ggml.tokens", "[s", _TOKENS),
  ("tokenizer.ggml.token_type", "[i", [3, 3] + [1] * (V - 2)),
  ("tokenizer.ggml.merges", "[s", ["a b"]),
  ("tokenizer.ggml.bos_token_id", "I", 0),
  ("tokenizer.ggml.eos_token_id", "I", 1),
  ("tokenizer.chat_template", "s", "{% for m in messages %}{{ m.content }}{% endfor %}"),
)
TENSORS = (  # name, shape (the last axis first), type
  ("token_embd.weight", (D, V), Q8_0),
  ("output_norm.weight", (D,), F32),
  ("blk.0.attn_norm.weight", (D,), F32),
  ("blk.0.ffn_norm.weight", (D,), F32),
  ("blk.0.attn_q.weight", (D, D), Q8_0),
  ("blk.0.attn_k.weight", (D, 16), F32),
  ("blk.0.attn_v.weight", (D, 16), F32),
  ("blk.0.attn_output.weight", (D, D), F32),
  ("blk.0.ffn_gate.weight", (D, F), F32),
  ("blk.0.ffn_up.weight", (D, F), F32),
  ("blk.0.ffn_down.weight", (F, D), F32),
)


def _string(text):
  data = text if isinstance(text, bytes) else text.encode()
  return [("Q", len(data)), ("s", data)]


def _field(name, layout, value):
  start = _string(name)
  if layout == "s":
    return [*start, ("I", _STRING), *_string(value)]
  if layout in _SCALARS:
    return [*start, ("I", _SCALARS[layout]), (layout, value)]
  kind = layout[1]
  items = [f for v in value for f in (_string(v) if kind == "s" else [(kind, v)])]
  of = _STRING if kind == "s" else _SCALARS[kind]
  return [*start, ("I", _ARRAY), ("I", of), ("Q", len(value)), *items]


def gguf_header(fields=FIELDS, tensors=TENSORS):
  """(the header in pairs of layout and value, bytes of the tensors); "s": bytes as they are."""
  out = [("s", b"GGUF"), ("I", 3), ("Q", len(tensors)), ("Q", len(fields))]
  for field in fields:
    out += _field(*field)
  end = 0
  for name, shape, kind in tensors:
    sizes = [("Q", n) for n in shape]
    out += [*_string(name), ("I", len(shape)), *sizes, ("I", kind), ("Q", end % 2**64)]
    end += 4 * math.prod(shape) if kind == F32 else math.prod(shape) // 32 * 34
  return out, end


GGUF_HEADER, GGUF_SIZE = gguf_header()


def gguf(header, size=GGUF_SIZE) -> bytes:
  """A file, with zeros for its tensors."""
  start = b"".join(v if k == "s" else struct.pack("<" + k, v) for k, v in header)
  return start + bytes(-len(start) % 32 + min(size, 2 * GGUF_SIZE))


# --- tokenizer ---------------------------------------------------------------------------

TEMPLATE = (
  "{% for m in messages %}{% if loop.first and m['role'] == 'system' %}{{ bos_token }}{% endif %}"
  "<|im_start|>{{ m.role + '\\n' }}{{ m.content | trim }}<|im_end|>\n{% endfor %}"
  "{% set ns = namespace(x=1) %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_SPECIAL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"]
_CHARS = [chr(i) for i in range(33, 127)] + ["\u0120", "\u010a"]  # GPT-2's space and newline
_ADDED = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
TOKENIZER = {
  "version": "1.0",
  "truncation": None,
  "padding": None,
  "added_tokens": [
    {"id": i, "content": text, **_ADDED, "special": True} for i, text in enumerate(_SPECIAL)
  ],
  "normalizer": {"type": "NFC"},
  "pre_tokenizer": _BYTES,
  "post_processor": {
    "type": "TemplateProcessing",
    "single": [
      {"SpecialToken": {"id": "<s>", "type_id": 0}},
      {"Sequence": {"id": "A", "type_id": 0}},
    ],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}},
  },
  "decoder": _BYTES,
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
TOKENIZER_VALUES = {
  "tokenizer.json": TOKENIZER,
  "tokenizer_config.json": TOKENIZER_CONFIG,
  "generation_config.json": {"eos_token_id": [1, 3], "temperature": 0.6},
}
TOKENIZER_FILES = {name: json_text(value) for name, value in TOKENIZER_VALUES.items()}
