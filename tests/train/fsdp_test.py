"""Losses and gradients on a mesh are those of one device, however it is cut."""

import os
import subprocess
import sys

import chex
import jax
import numpy as np
import pytest

from simpo_jax.data.packing import pack
from simpo_jax.data.types import PairTokens
from simpo_jax.models import sharding
from simpo_jax.models.hf_config import from_hf
from simpo_jax.settings import SimPOSettings
from simpo_jax.settings.train import REMAT
from simpo_jax.train.batch import batch_shape
from support.checked import CHECKED_PYTHON
from support.hosts import QUICK
from support.meshes import DEVICES, LENGTHS, SIZES, check_exchanges
from support.tiers import sweep

pytestmark = pytest.mark.model

# (hosts, data, fsdp, tensor), and whether weights are cut over hosts
MESHES = (
  ((2, 1, 4, 1), True),
  ((2, 2, 2, 1), True),
  ((2, 1, 4, 1), False),
  ((2, 1, 2, 2), True),
  ((1, 2, 2, 2), True),
)
MODELS = {  # and the meshes it is tried on
  "untied": (dict(model_type="llama", vocab_size=96), MESHES),
  "tied, biases, odd vocabulary": (
    dict(model_type="qwen2", vocab_size=97, tie_word_embeddings=True),
    MESHES,
  ),
  "gemma2": (
    dict(
      model_type="gemma2",
      vocab_size=96,
      head_dim=16,
      sliding_window=9,
      attn_logit_softcapping=2.0,
      final_logit_softcapping=3.0,
    ),
    MESHES[-1:],
  ),
}


@sweep("name", MODELS)
def test_gradients_of_a_mesh_are_those_of_one_device(name):
  """In a process of its own: the device count is fixed when jax starts."""
  env = dict(
    os.environ,
    XLA_FLAGS=f"--xla_force_host_platform_device_count={DEVICES} {QUICK}",
    JAX_PLATFORMS="cpu",
    PYTHONPATH=os.pathsep.join(sys.path),
  )
  done = subprocess.run(
    [*CHECKED_PYTHON, __file__, name], env=env, text=True, capture_output=True, timeout=600
  )
  assert done.returncode == 0, done.stderr[-4000:]
  assert done.stdout.count("equal") == len(MODELS[name][1]), done.stdout


def _check(name, hf, meshes):
  from simpo_jax.models.llama import abstract_params
  from support.simpo_reference import check_close, gradient_of_step, step_config

  cfg, rng = from_hf({**SIZES, **hf}, name), np.random.default_rng(0)
  params = jax.tree.map(
    lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32), abstract_params(cfg, np.float32)
  )
  pairs = [
    PairTokens(str(i), *(rng.integers(cfg.vocab_size, size=n).astype(np.int32) for n in lengths))
    for i, lengths in enumerate(LENGTHS)
  ]
  simpo = SimPOSettings(sft_weight=0.3)
  # Eight rows a micro-batch, several micro-batches, the last one not full.
  shape = batch_shape(len(pairs), row_length=128, slots=2, rows=8)
  one = step_config(cfg, simpo, shape)
  expected, expected_metrics = gradient_of_step(one, params, pairs, shape)

  def close(path, ours, theirs):
    check_close(ours, theirs, jax.tree_util.keystr(path), 1e-5)

  for i, ((hosts, data, fsdp, tensor), over_hosts) in enumerate(meshes):
    mesh = sharding.make_mesh(jax.devices(), hosts, data=data, fsdp=fsdp, tensor=tensor)
    step = step_config(cfg, simpo, shape, mesh, sharding.train_rules(over_hosts))
    step = step._replace(remat=REMAT[i % len(REMAT)])
    placed = jax.tree.map(sharding.device_put, params, step.weights)
    grads, metrics = gradient_of_step(step, placed, pairs, shape)
    np.testing.assert_allclose(metrics.loss, expected_metrics.loss, rtol=1e-6)
    chex.assert_trees_all_close(metrics.pairs, expected_metrics.pairs, rtol=2e-5, atol=1e-6)
    jax.tree.map_with_path(close, grads, expected)
    if tensor > 1:
      check_exchanges(step, placed, pack(pairs, shape), tensor)
    print(f"{name} on {mesh.shape}: equal")


if __name__ == "__main__":
  _check(sys.argv[1], *MODELS[sys.argv[1]])
