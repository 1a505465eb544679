"""The same sampled tokens on one device and on any mesh of several.

They are in a process of its own, since jax fixes their number at its start.
"""

import json
import os
import subprocess
import sys

import pytest

from support import tiers
from support.checked import CHECKED_PYTHON
from support.tiers import sweep

pytestmark = pytest.mark.program

DEVICES = 4
MESHES = ((2, 2), (4, 1), (1, 4))  # hosts, tensor
HOT = dict(temperature=0.8, num_samples=2)
# Settings of all prompts, and of each, which takes precedence.
CASES = {
  "mixed": (
    HOT | dict(suppress_tokens=(3,)),
    [
      dict(temperature=0.0),
      dict(top_k=20, min_p=0.01),
      dict(top_p=0.9, repetition_penalty=1.3),
      dict(top_k=150, top_p=0.99, temperature=3.0),  # more tokens than candidates
      dict(top_k=20, top_p=0.9),
      {},
    ],
  ),
  "temperature": (HOT, [{}] * 6),
}


@pytest.fixture(scope="module")
def results():
  env = dict(
    os.environ,
    JAX_PLATFORMS="cpu",
    XLA_FLAGS=f"--xla_force_host_platform_device_count={DEVICES}",
    PYTHONPATH=os.pathsep.join(sys.path),
  )
  command = [*CHECKED_PYTHON, __file__, "all" if tiers.everything else "few"]
  done = subprocess.run(command, env=env, text=True, capture_output=True, timeout=900)
  assert done.returncode == 0, done.stderr[-4000:]
  return json.loads(done.stdout.splitlines()[-1])


def test_the_same_logits_give_the_same_tokens_however_they_are_divided(results):
  alone, *divided = results["logits"]
  assert len(divided) == 2 and all(other == alone for other in divided)


@sweep("case", CASES)
def test_generations_are_the_same_on_every_mesh_in_both_modes(results, case):
  alone, *meshes = results[case]
  assert len(meshes) == 2 * len(MESHES if tiers.everything else MESHES[:1])
  assert all(other == alone for other in meshes)


# --- in the process with the devices -------------------------------------------------------


def _tokens_of_logits():
  """What `choose` draws for peaked and flat rows, the vocabulary on 1, 2 and 4 devices."""
  import functools

  import jax
  import numpy as np
  from jax.sharding import Mesh, NamedSharding
  from jax.sharding import PartitionSpec as P

  from simpo_jax.generate.sampling.choose import choose
  from simpo_jax.generate.sampling.settings import Across, Switches
  from support.sampling import logits_of, settings_of

  logits = np.concatenate([logits_of(40, 4096, spread=s) for s in (3.0, 1.0, 0.01)])
  n = len(logits)
  u = np.random.default_rng(0).random((n, 3)).astype(np.float32)
  settings = settings_of(n, top_k=[0, 50] * (n // 2), top_p=[1.0, 0.9, 0.95] * (n // 3))
  tokens = []
  for shards in (1, 2, 4):
    mesh = Mesh(np.asarray(jax.devices()[:shards]), "x")
    whole, divided = NamedSharding(mesh, P()), NamedSharding(mesh, P(None, "x"))
    replicate = functools.partial(jax.lax.with_sharding_constraint, shardings=whole)
    draw = jax.jit(
      functools.partial(
        choose, switches=Switches(True, 50, True), across=Across(shards, replicate)
      ),
      in_shardings=(divided, whole, whole),
    )
    tokens.append(np.asarray(draw(logits, settings, u)[0]).tolist())
  return tokens


def _generations(case, meshes):
  """The tokens of all samples, on one device and on each mesh in both modes."""
  import dataclasses

  import jax
  import numpy as np

  from simpo_jax.generate import on_mesh
  from simpo_jax.generate.assignment import round_robin
  from simpo_jax.generate.requests import make_requests, pack_requests
  from simpo_jax.generate.sizing import shape_for
  from simpo_jax.generate.stop_automaton import stop_automaton
  from simpo_jax.generate.suppression import make_suppression
  from simpo_jax.models.config import EMBEDDED
  from simpo_jax.models.sharding import INFERENCE_RULES, make_mesh
  from support.generation import random_prompts, random_weights, settings

  cfg = dataclasses.replace(
    EMBEDDED, vocab_size=256, num_attention_heads=4, num_key_value_heads=4, num_hidden_layers=2
  )
  params = jax.tree.map(np.asarray, random_weights(cfg))
  changes, each = case
  generation = settings(**changes)
  prompts = random_prompts([1, 5, 8, 17, 3, 9], cfg.vocab_size)
  prompts = [p._replace(settings=own) for p, own in zip(prompts, each, strict=True)]
  requests = make_requests(prompts, generation)
  suppression = make_suppression(generation, (), cfg.vocab_size)
  stops = stop_automaton(cfg.vocab_size)

  def tokens_on(mesh, mode):
    groups = mesh.shape["host"] if mode == "host_data_parallel" else 1
    places = round_robin(requests, groups)
    shape = shape_for(requests, places, generation, groups)
    packed = pack_requests(requests, places, shape, stops, 0, suppression)
    run = jax.jit(lambda p, r: on_mesh.generate(p, r, cfg, mesh, mode, shape, np.dtype(np.float32)))
    tokens = np.asarray(run(params, packed).tokens)
    return [tokens[place.group, place.index].tolist() for place in places]

  mode, other = INFERENCE_RULES
  results = [tokens_on(make_mesh(jax.devices()[:1], 1), mode)]
  for hosts, tensor in meshes:
    mesh = make_mesh(jax.devices(), hosts, tensor=tensor)
    results += [tokens_on(mesh, mode), tokens_on(mesh, other)]
  return results


if __name__ == "__main__":
  some = None if sys.argv[1] == "all" else 1
  out = {name: _generations(CASES[name], MESHES[:some]) for name in list(CASES)[:some]}
  print(json.dumps({"logits": _tokens_of_logits(), **out}))
