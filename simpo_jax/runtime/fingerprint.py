"""What must be equal on all hosts of a run, in named fields so that an error can name them."""

import dataclasses
import hashlib
import importlib.metadata
import os
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from simpo_jax.config import flatten
from simpo_jax.models import adapter_files
from simpo_jax.models.weights import OpenModel
from simpo_jax.program.build import Compiled, compiler_options
from simpo_jax.program.ledger import changed_fields, hex_digest
from simpo_jax.runtime.resolve import ResolvedRun
from simpo_jax.settings import Settings
from simpo_jax.tokenizer.tokenizer import Tokenizer

_PACKAGES = (
  "simpo-jax",
  "jax",
  "jaxlib",
  "libtpu",
  "optax",
  "numpy",
  # These read and tokenize the data.
  "transformers",
  "tokenizers",
  "jinja2",
  "grain",
  "array-record",
  "tensorflow-datasets",
)
_COMPILER_PACKAGES = ("jax", "jaxlib", "libtpu")
_COMPILER_VARIABLES = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# Settings of JAX that change a program or its results.
_JAX_SETTINGS = (
  "jax_enable_x64",
  "jax_default_matmul_precision",
  "jax_default_prng_impl",
  "jax_threefry_partitionable",
  "jax_numpy_dtype_promotion",
)

# Fields that the first checkpoints recorded, in this order; later ones only if not the default.
_FIRST_FIELDS = {
  "ModelConfig": (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "num_key_value_heads", "head_dim", "rms_norm_eps", "rope_theta",
    "rope_scaling", "max_position_embeddings", "tie_word_embeddings", "qkv_bias", "qk_norm",
    "sliding_window", "full_attention_every", "hidden_act", "post_norms", "norm_plus_one",
    "scaled_embedding", "query_pre_attn_scalar", "attn_logit_softcapping",
    "final_logit_softcapping",
  ),
  "RopeScaling": (
    "kind", "factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings",
  ),
}  # fmt: skip

_BLOCKS, _BLOCK_BYTES = 33, 1 << 16  # a model's file is hashed by samples: how many, how large
_PROBE_CHARS = 50_000  # of the decoded vocabulary, encoded to compare tokenizers
# Pre-tokenizers differ in digits, contractions, capitals, combining marks, spaces and newlines.
_SPLIT_PROBE = (
  " 1 12 123 1234 a1 2b\n 3\n\n4\t5 it's IT'S we'll 'RE a.b /c/\n d\r\n\r\n  e   f\t\tg "
  "1\u00b2 \u00c9 A\u00e9B Ab e\u0301 \u0928\u092e\u0938\u094d\u0924\u0947 \u4f60\u597d\uff0c2024 "
  "...!\n\n -7  "
)
SPLIT = "tokenizer's split"  # its name in the identity
_ENDS = "end tokens"


def versions() -> dict[str, str]:
  """Versions of Python and of the packages that can change the results of a run."""
  found = {"python": sys.version.split()[0]}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = "absent"
  return found


def settings_fields(config: Settings) -> dict[str, str]:
  """Config, versions, compiler settings and devices: all that is known before data is read."""
  return {
    **{f"config.{name}": repr(value) for name, value in flatten(config).items()},
    **{f"version of {name}": version for name, version in versions().items()},
    **_compile_settings(),
    "devices": ", ".join(f"{d.process_index}:{d.id} {d.device_kind}" for d in jax.devices()),
  }


def build_fields(compiled: Compiled, mesh: Mesh) -> dict[str, str]:
  """All that the results of a program depend on, bit for bit, apart from its inputs."""
  found = versions()
  return {
    "program text": compiled.fingerprint,
    **{f"version of {name}": found[name] for name in _COMPILER_PACKAGES},
    **_compile_settings(),
    "compile options": str(compiler_options(mesh)),
    "mesh": str(dict(mesh.shape)),
    "device kind": mesh.devices.flat[0].device_kind,
  }


def _compile_settings() -> dict[str, str]:
  return {
    **{name: os.environ.get(name, "") for name in _COMPILER_VARIABLES},
    **{name: str(getattr(jax.config, name)) for name in _JAX_SETTINGS},
  }


def data_fields(run: ResolvedRun) -> dict[str, str]:
  """Digests of what was read: pairs in order, prompts, tokenizer and model; and of the KV pool."""
  fields = {
    "chat template": run.tokenizer.chat_template or "",
    _ENDS: str((run.tokenizer.eos_ids, run.tokenizer.turn_end)),
    "tokenizer": _vocabulary(run.tokenizer),
    "training pairs": getattr(run.train_pairs, "identity", run.train_pairs),
    "held-out pairs": run.eval_pairs,
    "prompts and sampling settings": run.packed,
    "model's config": str(run.model.config),
    "model's files": file_identity(run.model.path) + _adapter_identity(run.model),
    "KV pool": str(run.pool),
  }
  return {name: hex_digest(value) for name, value in fields.items()}


def identity_fields(run: ResolvedRun, fields: dict[str, str]) -> dict[str, str]:
  """Digests of what must not change between a checkpoint and its resume; devices may.

  Args:
    fields: the run's `data_fields`, so that the pairs are not hashed twice.
  """
  model = model_fields(run.model, run.tokenizer)
  requests = [(r.prompt.tokens, str((r.prompt.index, r.sample, r.budget))) for r in run.requests]
  return {
    "tokenizer": model["tokenizer"],
    SPLIT: model[SPLIT],
    _ENDS: model[_ENDS],
    "weights": fields["model's files"],
    "model's config": model["model's config"],
    **{name: fields[name] for name in ("training pairs", "held-out pairs")},
    "prompts": hex_digest(requests),
  }


def split_digest(encode: Callable[[str], Sequence[int]]) -> str:
  """Returns a digest of how a tokenizer splits text; the value of SPLIT in `model_fields`."""
  return hex_digest(np.asarray(encode(_SPLIT_PROBE), np.int32))


def model_fields(model: OpenModel, tokenizer: Tokenizer) -> dict[str, str]:
  """The part of a run's identity that depends on model and tokenizer, not on the data."""
  return {
    "tokenizer": hex_digest(tokenizer_identity(tokenizer)),
    SPLIT: split_digest(tokenizer.encode),
    _ENDS: hex_digest(str((tokenizer.eos_ids, tokenizer.turn_end))),
    "model's config": hex_digest(config_text(model.config)),
  }


def config_text(value: Any) -> str:
  """A model's config as text that does not change when a later version adds a field.

  Lists the fields that the first checkpoints recorded, then all others that differ from their
  defaults, sorted by name.
  """
  kind = type(value).__name__
  if kind not in _FIRST_FIELDS:
    return repr(value)
  first = {name: getattr(value, name) for name in _FIRST_FIELDS[kind]}
  later = sorted((n, v) for n, v in changed_fields(value).items() if n not in first)
  fields = [f"{name}={config_text(v)}" for name, v in [*first.items(), *later]]
  return f"{kind}({', '.join(fields)})"


def tokenizer_identity(t: Tokenizer) -> tuple:
  """Vocabulary and chat template of a tokenizer, to be hashed; without `later_ends`."""
  ends = tuple(i for i in t.eos_ids if i not in t.later_ends)
  return *_vocabulary(dataclasses.replace(t, eos_ids=ends)), t.chat_template or ""


def _vocabulary(t: Tokenizer) -> tuple:
  """A tokenizer's vocabulary in order, special tokens, and the ids of a probe text."""
  text = t.decode(range(t.vocab_size))
  ids = np.asarray(t.encode(text[:_PROBE_CHARS]), np.int32)
  specials = str((t.bos_id, t.eos_ids, t.pad_id, t.vocab_size, t.adds_bos))
  return text, b"\n".join(t.token_bytes()), ids, specials


def file_identity(path: pathlib.Path | None) -> str:
  """Names, sizes and digests of samples of a model's weight files; hashing them in full is slow."""
  if path is None:
    return ""
  paths = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
  return str([(p.name, p.stat().st_size, _sampled_digest(p)) for p in paths])


def _adapter_identity(model: OpenModel) -> str:
  """Digests of an adapter's files, hashed whole: they are small, and its config has its scale."""
  if model.adapter is None:
    return ""
  names = (adapter_files.CONFIG, adapter_files.WEIGHTS)
  return str([hashlib.sha256((model.adapter.path / n).read_bytes()).hexdigest() for n in names])


def _sampled_digest(path: pathlib.Path) -> str:
  """SHA-256 of evenly spaced blocks of a file; different weights differ in all of them."""
  digest, size = hashlib.sha256(), path.stat().st_size
  with open(path, "rb") as f:
    for i in range(_BLOCKS):
      f.seek(max(0, size - _BLOCK_BYTES) * i // (_BLOCKS - 1))
      digest.update(f.read(_BLOCK_BYTES))
  return digest.hexdigest()
