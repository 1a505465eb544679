"""Weights land on several devices shard by shard, and nothing is compiled for it."""

import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simpo_jax.models import llama, sharding, weights
from simpo_jax.models.config import EMBEDDED

pytestmark = pytest.mark.model

LAYOUTS = {  # (hosts, tensor, rules)
  "fsdp": (1, 1, sharding.TRAIN_RULES),
  "fsdp_tensor": (1, 2, sharding.TRAIN_RULES),
  "hosts": (2, 2, sharding.TRAIN_RULES),
  "in_host": (2, 1, sharding.INFERENCE_RULES["host_data_parallel"]),
  "everywhere": (2, 1, sharding.INFERENCE_RULES["global_mesh"]),
}


def test_shards_are_slices_of_the_whole(tmp_path):
  """In a process of its own: the device count is fixed when jax starts."""
  from support.hf_models import hf_model

  hf_model("Qwen2").save_pretrained(tmp_path, max_shard_size="60KB")
  env = dict(
    os.environ,
    XLA_FLAGS="--xla_force_host_platform_device_count=4",
    JAX_PLATFORMS="cpu",
    PYTHONPATH=os.pathsep.join(sys.path),
  )
  done = subprocess.run(
    [sys.executable, __file__, str(tmp_path)], env=env, text=True, capture_output=True, timeout=300
  )
  assert done.returncode == 0, done.stderr
  assert f"{3 * len(LAYOUTS)} layouts checked" in done.stdout


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_random_weights(dtype):
  first, again, other = (
    _load("embedded", jax.devices()[:1], 1, 1, sharding.TRAIN_RULES, dtype, s) for s in (0, 0, 1)
  )
  chex.assert_trees_all_equal(first, again)
  assert not np.array_equal(first["embed"], other["embed"])
  assert not np.array_equal(first["layers"]["q"][0], first["layers"]["q"][1])
  assert not np.array_equal(first["layers"]["k"], first["layers"]["v"])
  np.testing.assert_array_equal(np.asarray(first["final_norm"]), 1)
  assert abs(np.asarray(first["embed"], np.float32).std() - weights.INIT_STD) < 1e-3
  declared = llama.abstract_params(EMBEDDED, jnp.dtype(dtype))
  chex.assert_trees_all_equal_shapes_and_dtypes(first, declared)


def _load(source, devices, hosts, tensor, rules, dtype="float32", seed=0):
  opened = weights.open_model(source)
  mesh = sharding.make_mesh(devices, hosts, tensor=tensor)
  shardings = sharding.named(mesh, sharding.param_specs(opened.config, mesh, rules))
  return weights.load_params(opened, shardings, dtype, seed)


def _check_layouts(folder):
  compiled = []
  jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration_secs, **_: compiled.append(event) if "backend_compile" in event else None
  )
  checked = 0
  for source in (folder, f"random:{folder}", "embedded"):
    whole = _load(source, jax.devices()[:1], 1, 1, sharding.TRAIN_RULES)
    for hosts, tensor, rules in LAYOUTS.values():
      parts = _load(source, jax.devices(), hosts, tensor, rules)
      for full, array in zip(jax.tree.leaves(whole), jax.tree.leaves(parts), strict=True):
        assert len(array.addressable_shards) == 4
        for shard in array.addressable_shards:
          np.testing.assert_array_equal(np.asarray(shard.data), np.asarray(full)[shard.index])
      q = parts["layers"]["q"]
      assert q.sharding.shard_shape(q.shape) != q.shape, "nothing was sharded"
      checked += 1
  assert not compiled, f"loading compiled {len(compiled)} programs"
  jax.jit(lambda x: x + 1)(np.float32(1))
  assert compiled, "the compile counter does not count"
  print(checked, "layouts checked")


if __name__ == "__main__":
  _check_layouts(sys.argv[1])
