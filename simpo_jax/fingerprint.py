"""What must be the same on all hosts of a run, field by field, so that an error can name it."""

import importlib.metadata
import os
import pathlib
import sys

import jax
import numpy as np

from simpo_jax.config import flatten
from simpo_jax.ledger import digest
from simpo_jax.resolve import Run

_PACKAGES = ("simpo-jax", "jax", "jaxlib", "libtpu", "optax", "numpy", "transformers")
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
    **{name: os.environ.get(name, "") for name in _COMPILER},
    **{name: str(getattr(jax.config, name)) for name in _JAX},
    "devices": ", ".join(f"{d.process_index}:{d.id} {d.device_kind}" for d in jax.devices()),
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


def _sizes(path: pathlib.Path | None) -> str:
  """Names and sizes of the files of a checkpoint, whose bytes would take too long to read."""
  if path is None:
    return ""
  paths = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
  return str([(p.name, p.stat().st_size) for p in paths])


def _hex(value) -> str:
  return np.asarray(digest(value), np.int32).tobytes().hex()
