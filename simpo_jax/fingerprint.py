"""What must be the same on all hosts of a run, field by field, so that an error can name it."""

import hashlib
import importlib.metadata
import os
import pathlib
import sys

import jax
import numpy as np
from jax.sharding import Mesh

from simpo_jax.config import flatten
from simpo_jax.data.tokenizer import Tokenizer
from simpo_jax.ledger import digest
from simpo_jax.program import Compiled, compiler_options
from simpo_jax.resolve import Run
from simpo_jax.weights import OpenModel

_PACKAGES = ("simpo-jax", "jax", "jaxlib", "libtpu", "optax", "numpy", "transformers")
_COMPILERS = ("jax", "jaxlib", "libtpu")
# Environment variables that the compiler reads.
_COMPILER = ("XLA_FLAGS", "LIBTPU_INIT_ARGS")
# Settings of jax that change a program's text or numbers.
_JAX = (
  "jax_enable_x64",
  "jax_default_matmul_precision",
  "jax_default_prng_impl",
  "jax_threefry_partitionable",
  "jax_numpy_dtype_promotion",
)

_BLOCKS, _BLOCK = 33, 1 << 16  # of a model's file, that stand for all of it; bytes
_PROBE = 50_000  # characters that a tokenizer is tried on


def versions() -> dict[str, str]:
  """Of Python and the packages that a run's numbers depend on."""
  found = {"python": sys.version.split()[0]}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      found[name] = "absent"
  return found


def settings_fields(config) -> dict[str, str]:
  """Config, versions, compile options and devices; known before anything is read."""
  return {
    **{f"config.{name}": repr(value) for name, value in flatten(config).items()},
    **{f"version of {name}": version for name, version in versions().items()},
    **_compile_settings(),
    "devices": ", ".join(f"{d.process_index}:{d.id} {d.device_kind}" for d in jax.devices()),
  }


def build_fields(compiled: Compiled, mesh: Mesh) -> dict[str, str]:
  """What decides, to the last bit, on the numbers of a program."""
  found = versions()
  return {
    "program text": compiled.fingerprint,
    **{f"version of {name}": found[name] for name in _COMPILERS},
    **_compile_settings(),
    "compile options": str(compiler_options(mesh)),
    "mesh": str(dict(mesh.shape)),
    "device kind": mesh.devices.flat[0].device_kind,
  }


def _compile_settings() -> dict[str, str]:
  return {
    **{name: os.environ.get(name, "") for name in _COMPILER},
    **{name: str(getattr(jax.config, name)) for name in _JAX},
  }


def data_fields(run: Run) -> dict[str, str]:
  """Digests of what was read: pairs in their order, prompts, the model, pool size."""
  fields = {
    "training pairs": getattr(run.train_pairs, "identity", run.train_pairs),
    "held-out pairs": run.eval_pairs,
    "prompts and sampling settings": run.packed,
    "model's config": str(run.model.config),
    "model's files": _sizes(run.model.path),
    "KV pool": str(run.pool),
  }
  return {name: _hex(value) for name, value in fields.items()}


def identity_fields(run: Run, fields: dict[str, str]) -> dict[str, str]:
  """What a run must find unchanged to go on from its checkpoint, on whatever devices.

  Args:
    fields: the run's `data_fields`, for which all pairs were hashed.
  """
  model = model_fields(run.model, run.tokenizer)
  asked = [(r.prompt.tokens, str((r.prompt.index, r.sample, r.budget))) for r in run.requests]
  return {
    "tokenizer": model["tokenizer"],
    "weights": fields["model's files"],
    "model's config": model["model's config"],
    **{name: fields[name] for name in ("training pairs", "held-out pairs")},
    "prompts": _hex(asked),
  }


def model_fields(model: OpenModel, tokenizer: Tokenizer) -> dict[str, str]:
  """Of a run's identity, what a reader of its weights can tell without its data."""
  return {"tokenizer": _hex(_tokenizer(tokenizer)), "model's config": _hex(str(model.config))}


def _tokenizer(t: Tokenizer) -> tuple:
  """Its tokens in their order, how text is cut into them, and what templates make of it."""
  text = t.decode(range(t.vocab_size))
  ids = np.asarray(t.encode(text[:_PROBE]), np.int32)
  specials = str((t.bos_id, t.eos_ids, t.pad_id, t.vocab_size, t.adds_bos))
  return text, b"\n".join(t.token_bytes()), ids, specials, t.chat_template or ""


def _sizes(path: pathlib.Path | None) -> str:
  """Names, sizes and samples of a model's files, whose every byte would take too long to read."""
  if path is None:
    return ""
  paths = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
  return str([(p.name, p.stat().st_size, _sample(p)) for p in paths])


def _sample(path: pathlib.Path) -> str:
  """A digest of blocks all over a file: other weights differ everywhere."""
  digest, size = hashlib.sha256(), path.stat().st_size
  with open(path, "rb") as f:
    for i in range(_BLOCKS):
      f.seek(max(0, size - _BLOCK) * i // (_BLOCKS - 1))
      digest.update(f.read(_BLOCK))
  return digest.hexdigest()


def _hex(value) -> str:
  return np.asarray(digest(value), np.int32).tobytes().hex()
