"""Options of training that save memory or average weights, in the one program."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simpo_jax.config import default_config
from simpo_jax.config_check import validate
from simpo_jax.data.packing import pack
from simpo_jax.errors import UserError
from simpo_jax.models import weights
from simpo_jax.program.compile_count import compile_count
from simpo_jax.program.state import state_sharding
from simpo_jax.run import run
from simpo_jax.runtime import resolve
from simpo_jax.settings.train import REMAT
from simpo_jax.train.step import evaluate_step
from support.simpo_reference import check_close, gradient_of_step

pytestmark = pytest.mark.model


def config(**changes):
  c = default_config()
  c.train.steps, c.train.learning_rate, c.train.warmup_ratio = 3, 1e-3, 0.0
  c.train.batch_size, c.data.embedded_pairs = 4, 64
  c.data.max_length, c.data.max_prompt_length = 256, 128
  c.update_from_flattened_dict(changes)
  return validate(c)


def start(resolved, seed=0):
  return jax.device_get(
    weights.load_params(resolved.model, state_sharding(resolved.program).params, "float32", seed)
  )


@pytest.fixture(scope="module")
def everything(tmp_path_factory):
  """A run with all of them, and what it started from."""
  c = config(
    **{
      "train.freeze_embeddings": True,
      "train.ema_decay": 0.5,
      "train.mu_dtype": "bfloat16",
      "train.remat": "dots",
    }
  )
  before = compile_count()
  state, folder = run(c, str(tmp_path_factory.mktemp("options") / "run"))
  assert compile_count() == before + 1, "frozen parts and averages cost no program of their own"
  chex.assert_tree_all_finite(state)
  resolved = resolve.resolve(c)
  return jax.device_get(state), resolved, start(resolved), folder


def test_frozen_embeddings_stay_and_take_no_optimizer_state(everything):
  state, _, before, _ = everything
  np.testing.assert_array_equal(state.params["embed"], before["embed"])
  changed = jax.tree.map(
    lambda a, b: not np.array_equal(a, b), state.params["layers"], before["layers"]
  )
  assert all(jax.tree.leaves(changed))
  shape = before["embed"].shape
  assert not [x for x in jax.tree.leaves(state.opt_state) if np.shape(x) == shape]


def test_the_first_moment_is_bfloat16(everything):
  state, *_ = everything
  moments = {x.dtype for x in jax.tree.leaves(state.opt_state) if np.ndim(x) == 3}
  assert moments == {jnp.dtype("bfloat16"), jnp.dtype("float32")}


def test_evaluation_uses_the_average(everything):
  state, resolved, before, folder = everything
  rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
  step, batch = resolved.program.step, resolved.program.batch
  assert len(resolved.eval_pairs) <= batch.pairs
  evaluate = jax.jit(lambda p, b: evaluate_step(p, b, step).loss)
  loss = {
    name: float(evaluate(tree, pack(resolved.eval_pairs, batch)))
    for name, tree in (("average", state.weights), ("last", state.params))
  }
  assert rows[-1]["mode"] == "evaluate"
  assert abs(rows[-1]["loss"] - loss["average"]) < 1e-6 < abs(rows[-1]["loss"] - loss["last"])


@pytest.mark.slow
def test_the_average_is_that_of_the_steps(tmp_path):
  """Of one, two and three steps of the same run: w' = d w + (1 - d) new, from the start."""
  runs = []
  for steps in (1, 2, 3):
    c = config(**{"train.steps": steps, "train.schedule": "constant", "train.ema_decay": 0.75})
    runs.append(jax.device_get(run(c, str(tmp_path / str(steps)))[0]))
  average = start(resolve.resolve(c))
  for state in runs:
    average = jax.tree.map(lambda a, w: 0.75 * a + 0.25 * w, average, state.params)
    chex.assert_trees_all_close(average, state.average, rtol=1e-5, atol=1e-7)


def test_what_is_computed_again_does_not_matter():
  c = config()
  resolved = resolve.resolve(c)
  pairs, shape = resolved.train_pairs[:4], resolved.program.batch
  params = start(resolved)
  grads = {
    policy: gradient_of_step(resolved.program.step._replace(remat=policy), params, pairs, shape)[0]
    for policy in REMAT
  }
  for policy in REMAT:
    jax.tree.map(lambda a, b, p=policy: check_close(a, b, p, 1e-6), grads[policy], grads["full"])


@pytest.mark.parametrize(
  "field,value,message",
  (
    ("train.remat", "some", "full, dots, none"),
    ("train.mu_dtype", "float16", "float32, bfloat16"),
    ("train.ema_decay", 1.0, "ema_decay"),
    ("train.logits_chunk", -1, "logits_chunk"),
    ("data.lookahead", -1, "lookahead"),
  ),
)
def test_mistakes(field, value, message):
  with pytest.raises(UserError, match=message):
    validate(config(**{field: value}))
