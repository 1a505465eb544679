"""Adapters against the `peft` package: logits, files, merging; and that nothing else trains."""

import dataclasses
import json
import os
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from simpo_jax.config import default_config
from simpo_jax.config_check import validate
from simpo_jax.data.packing import pack
from simpo_jax.data.types import PairTokens
from simpo_jax.errors import UserError
from simpo_jax.export import adapter
from simpo_jax.models import lora as adapters
from simpo_jax.models import sharding, weights
from simpo_jax.models.llama import tensors
from simpo_jax.models.lora import Lora
from simpo_jax.program import build
from simpo_jax.program.compile_count import compile_count
from simpo_jax.run import pairs_by_step, run
from simpo_jax.runtime import resolve
from simpo_jax.settings import SimPOSettings
from simpo_jax.settings.train import LORA_TARGETS
from simpo_jax.train.batch import batch_shape
from simpo_jax.train.step import StepConfig, evaluate_step
from support import hosts_worker as hosts_work
from support.hf_models import VOCAB, hf_logits, hf_model, load, our_logits
from support.hosts import QUICK, run_group
from support.lora_models import LORA_MODELS, adapters_of_peft, merged_weights, peft_model
from support.meshes import LENGTHS, SIZES, check_exchanges
from support.simpo_reference import check_close, gradient_of_step, reference, step_config

pytestmark = pytest.mark.model

TOLERANCE = 1e-5
OF_GRADIENTS = 2e-5  # of the largest entry; by how a CPU sums, up to 1.1e-5 was seen
SETTINGS = {
  "train.steps": 3,
  "train.batch_size": 4,
  "train.learning_rate": 0.03,
  "train.lora_rank": 4,
  "train.lora_alpha": 8.0,
  "train.ema_decay": 0.25,
  "model.param_dtype": "bfloat16",
  "generate.at_steps": (3,),
  "generate.count": 4,
}


def _step(cfg, simpo, shape, lora, mesh=None) -> StepConfig:
  """A step that trains adapters alone."""
  mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1], hosts=1)
  step = step_config(cfg, simpo, shape, mesh)
  specs = sharding.param_specs(cfg, mesh, sharding.TRAIN_RULES, lora)
  return step._replace(lora=lora, frozen=tuple(tensors(cfg)), weights=sharding.named(mesh, specs))


# --- the peft package -----------------------------------------------------------------------


@pytest.fixture(
  scope="module",
  params=[
    LORA_MODELS["llama_all"],
    pytest.param(LORA_MODELS["qwen2_some"], marks=pytest.mark.slow),
  ],
  ids=list(LORA_MODELS),
)
def pair(request, tmp_path_factory):
  """A model with peft's adapters, the same in our arrays, and tokens to try it on."""
  kind, lora = request.param
  folder = tmp_path_factory.mktemp("base")
  hf_model(kind).save_pretrained(folder)
  cfg, params = load(folder)
  net = peft_model(kind, lora)
  params = {**jax.device_get(params), "lora": adapters_of_peft(net, cfg, lora)}
  tokens = np.random.default_rng(0).integers(0, VOCAB, (2, 24)).astype(np.int32)
  return kind, lora, cfg, params, net, tokens


def _unmerged(params, lora):
  tree = adapters.beside_weights(params)
  return {**tree, "layers": adapters.scaled(tree["layers"], lora)}


def test_logits_equal_peft(pair):
  _, lora, cfg, params, net, tokens = pair
  expected = hf_logits(net, tokens)
  ours = our_logits(cfg, _unmerged(params, lora), tokens)
  np.testing.assert_allclose(ours, expected, atol=TOLERANCE * np.abs(expected).max())
  assert np.abs(hf_logits(net.get_base_model(), tokens) - expected).max() < 1e-3
  with net.disable_adapter():
    assert np.abs(hf_logits(net, tokens) - expected).max() > 0.1, "the adapters show"


def test_gradients_equal_torch(pair):
  kind, lora, cfg, params, *_ = pair
  rng = np.random.default_rng(0)
  lengths = ((5, 7, 3), (1, 1, 9), (12, 4, 4), (3, 10, 1))
  pairs = [
    PairTokens(str(i), *(rng.integers(VOCAB, size=n).astype(np.int32) for n in three))
    for i, three in enumerate(lengths)
  ]
  simpo = SimPOSettings(sft_weight=0.3)
  # The reference is float64, so that only our own float32 rounding counts.
  expected = reference(peft_model(kind, lora).double(), pairs, **dataclasses.asdict(simpo))
  shape = batch_shape(len(pairs), row_length=128, slots=2, rows=1)
  grads, metrics = gradient_of_step(_step(cfg, simpo, shape, lora), params, pairs, shape)
  table = adapters.all_tensors(cfg, lora)["lora"]
  assert grads.keys() == {"lora"} and len(expected.grads) == len(table) * cfg.num_hidden_layers
  for name, tensor in table.items():
    names = tensor.hf_name.replace(".weight", ".default.weight")
    theirs = [expected.grads[names.format(i)].T for i in range(cfg.num_hidden_layers)]
    check_close(grads["lora"][name], np.stack(theirs), name, OF_GRADIENTS)
  check_close(metrics.loss, expected.loss, "loss", TOLERANCE)
  check_close(metrics.grad_norm, expected.grad_norm, "gradient norm", TOLERANCE)


def test_peft_loads_what_is_exported(pair, tmp_path):
  kind, lora, cfg, params, net, tokens = pair
  torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
  placed = jax.device_put(params["lora"])
  adapter.export_adapter(tmp_path / "adapter", placed, cfg, lora, None)
  loaded = peft.PeftModel.from_pretrained(hf_model(kind), tmp_path / "adapter").eval()
  theirs, expected = (peft.get_peft_model_state_dict(n) for n in (loaded, net))
  assert theirs.keys() == expected.keys()
  assert all(torch.equal(theirs[name], expected[name]) for name in expected)
  np.testing.assert_array_equal(hf_logits(loaded, tokens), hf_logits(net, tokens))


def test_merging_on_the_host_equals_merge_and_unload(pair):
  kind, lora, cfg, params, *_ = pair
  merged = merged_weights(params, lora)
  expected = dict(peft_model(kind, lora).merge_and_unload().state_dict())

  def check(tensor, ours):
    layers = range(cfg.num_hidden_layers) if tensor.stacked else (0,)
    theirs = np.stack([expected[tensor.hf_name.format(i)].numpy() for i in layers])
    theirs = theirs.swapaxes(1, 2) if tensor.transposed else theirs
    np.testing.assert_allclose(ours, theirs if tensor.stacked else theirs[0], atol=1e-6)

  jax.tree.map(check, tensors(cfg), merged)  # and the trees are the same: no adapter is left


# --- a run ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A run with adapters: its final state, what it started from, and its folder."""
  config = hosts_work.config(SETTINGS)
  before = compile_count()
  state, folder = run(config, str(tmp_path_factory.mktemp("lora") / "run"))
  assert compile_count() == before + 1
  resolved = resolve.resolve(config)
  start = weights.load_params(
    resolved.model,
    build.state_sharding(resolved.program).params,
    resolved.program.param_dtype,
    config.seed,
    resolved.program.step.lora,
  )
  return jax.device_get(state), jax.device_get(start), resolved, folder, config


def _rows(folder):
  return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_adapters_start_as_in_peft(trained):
  _, start, *_ = trained
  for name, value in start["lora"].items():
    assert value.dtype == np.float32
    if name.endswith("_b"):
      assert not value.any()
      continue
    bound = 1 / np.sqrt(value.shape[1])
    assert 0.9 * bound < np.abs(value).max() <= bound
    assert abs(value.std() - bound / np.sqrt(3)) < 0.1 * bound
    assert not np.array_equal(value[0], value[1])


def test_only_adapters_change(trained):
  state, start, *_ = trained
  base = tensors(trained[2].model.config)
  for name in base:
    chex.assert_trees_all_equal(state.params[name], start[name])
    assert {x.dtype for x in jax.tree.leaves(start[name])} == {jnp.dtype("bfloat16")}
  for name, value in state.params["lora"].items():
    assert not np.array_equal(value, start["lora"][name]), name


def test_state_beside_the_weights_is_of_adapter_size(trained):
  state, _, resolved, folder, _ = trained
  lora = resolved.program.step.lora
  shapes = sorted(
    t.shape for t in adapters.all_tensors(resolved.model.config, lora)["lora"].values()
  )
  moments = [x for x in jax.tree.leaves(state.opt_state) if np.ndim(x)]
  assert sorted(np.shape(x) for x in moments) == sorted(2 * shapes)
  assert sorted(np.shape(x) for x in jax.tree.leaves(state.average)) == shapes
  record = json.loads((folder / "run.json").read_text())
  assert record["executables"] == 1
  held = sum(x.nbytes for x in jax.tree.leaves(state))
  assert record["memory"]["aliased"] == held, "all of it is updated in place"


def test_the_first_loss_is_that_without_adapters(trained):
  _, start, resolved, folder, config = trained
  plain = hosts_work.config({**SETTINGS, "train.lora_rank": 0, "model.param_dtype": "float32"})
  step = resolve.resolve(plain).program.step
  base = {name: part for name, part in start.items() if name != "lora"}
  batch = pack(pairs_by_step(resolved, config)(1), resolved.program.batch)
  expected = float(jax.jit(lambda p, b: evaluate_step(p, b, step).loss)(base, batch))
  assert abs(_rows(folder)[0]["loss"] - expected) < 1e-6


@pytest.mark.slow
def test_generation_uses_the_merged_average(trained):
  state, start, resolved, folder, _ = trained
  cfg, lora = resolved.model.config, resolved.program.step.lora
  f32 = jax.tree.map(lambda x: np.asarray(x, np.float32), state.weights)
  last = jax.tree.map(lambda x: np.asarray(x, np.float32), state.params)
  base = {name: part for name, part in f32.items() if name != "lora"}
  followed = {"average": merged_weights(f32, lora), "last": merged_weights(last, lora)}
  [file] = folder.glob("samples/step_000003/host_*.jsonl")
  answers = [json.loads(line)["generated_token_ids"] for line in file.read_text().splitlines()]

  def agree(params):
    """Of all tokens, those that a dense forward pass would have chosen, too."""
    hits = []
    for request, answer in zip(resolved.requests, answers, strict=True):
      prompt = request.prompt.tokens
      logits = our_logits(cfg, params, np.concatenate([prompt, answer])[None].astype(np.int32))
      hits += list(logits[0, len(prompt) - 1 : -1].argmax(-1) == answer)
    return np.mean(hits)

  assert agree(followed["average"]) == 1
  assert agree(base) < 1 and agree(followed["last"]) < 1


def test_a_run_leaves_the_average_as_an_adapter(trained):
  state, _, resolved, folder, _ = trained
  found = safetensors.numpy.load_file(folder / "adapter" / "adapter_model.safetensors")
  table = adapters.all_tensors(resolved.model.config, resolved.program.step.lora)["lora"]
  assert len(found) == 2 * len(LORA_TARGETS) * resolved.model.config.num_hidden_layers
  for name, tensor in table.items():
    for layer, value in enumerate(state.average["lora"][name]):
      np.testing.assert_array_equal(found[tensor.hf_name.format(layer)], value.T)


@pytest.mark.slow
def test_two_processes_train_and_export_the_same(trained, tmp_path):
  """Two hosts of two devices each: process 0 writes what it holds, which is whole."""
  _, _, _, folder, _ = trained
  command = [hosts_work.__file__, str(tmp_path), f"run={json.dumps(SETTINGS)}"]
  ended = run_group(tmp_path, [command, command], devices=2)
  assert [e.code for e in ended] == [0, 0], ended[0].err[-2000:]
  ours, expected = (
    safetensors.numpy.load_file(path / "adapter" / "adapter_model.safetensors")
    for path in (tmp_path / "run", folder)
  )
  chex.assert_trees_all_close(ours, expected, atol=2e-4, rtol=0)
  for one, other in zip(_rows(tmp_path / "run"), _rows(folder), strict=True):
    assert one["mode"] == other["mode"]
    if one["mode"] != "generate":
      assert one["loss"] == pytest.approx(other["loss"], abs=1e-4)
  record = json.loads((tmp_path / "run" / "run.json").read_text())
  assert record["compiles"] == 1 and record["processes"] == 2


# --- a mesh ---------------------------------------------------------------------------------

MESHES = ((2, 2, 2, 1), (2, 1, 2, 2), (1, 2, 2, 2))  # hosts, data, fsdp, tensor


@pytest.mark.slow
def test_a_mesh_computes_what_one_device_does():
  """In a process of its own: the device count is fixed when jax starts."""
  env = dict(
    os.environ,
    XLA_FLAGS=f"--xla_force_host_platform_device_count=8 {QUICK}",
    JAX_PLATFORMS="cpu",
    PYTHONPATH=os.pathsep.join(sys.path),
  )
  done = subprocess.run(
    [sys.executable, __file__], env=env, text=True, capture_output=True, timeout=600
  )
  assert done.returncode == 0, done.stderr[-4000:]
  assert done.stdout.count("equal") == len(MESHES), done.stdout


def _check_meshes():
  from jax.sharding import PartitionSpec as P

  from simpo_jax.models import llama
  from simpo_jax.models.hf_config import from_hf

  cfg, rng = from_hf({**SIZES, "model_type": "llama", "vocab_size": 96}), np.random.default_rng(0)
  lora = Lora(4, 6.0, LORA_TARGETS)
  params = jax.tree.map(
    lambda x: 0.3 * rng.normal(size=x.shape).astype(np.float32),
    adapters.abstract_weights(cfg, np.float32, lora),
  )
  pairs = [
    PairTokens(str(i), *(rng.integers(cfg.vocab_size, size=n).astype(np.int32) for n in lengths))
    for i, lengths in enumerate(LENGTHS)
  ]
  shape = batch_shape(len(pairs), row_length=128, slots=2, rows=8)

  def step_on(mesh):
    return _step(cfg, SimPOSettings(sft_weight=0.3), shape, lora, mesh)

  def gradient(step, params):
    return gradient_of_step(step, params, pairs, shape)

  expected, expected_metrics = gradient(step_on(sharding.make_mesh(jax.devices()[:1], 1)), params)
  merged = merged_weights(params, lora)
  for hosts, data, fsdp, tensor in MESHES:
    mesh = sharding.make_mesh(jax.devices(), hosts, data=data, fsdp=fsdp, tensor=tensor)
    step = step_on(mesh)
    placed = jax.tree.map(sharding.device_put, params, step.weights)
    grads, metrics = gradient(step, placed)
    assert grads.keys() == {"lora"}
    np.testing.assert_allclose(metrics.loss, expected_metrics.loss, rtol=1e-6)
    for name, truth in expected["lora"].items():
      check_close(grads["lora"][name], truth, name, 1e-5)
    whole = adapter.host_adapters(placed["lora"])
    chex.assert_trees_all_equal(whole, params["lora"])
    for name, spec in jax.tree.map(lambda s: s.spec, step.weights["lora"]).items():
      matrix = step.weights["layers"][name.split("_")[0]].spec
      own = spec[1] if name.endswith("_a") else spec[2]
      of_matrix = matrix[1] if name.endswith("_a") else matrix[2]
      assert ("tensor" in (own or ())) == ("tensor" in (of_matrix or ())), name
    if tensor > 1:
      check_exchanges(step, placed, pack(pairs, shape), tensor)

    @jax.jit
    def decoded(params, step=step):
      def merge(p):
        return adapters.merge(p, lora, step.weights)

      return llama.unstack(adapters.beside_weights(params), cfg, jnp.float32, merge)

    for i, layer in enumerate(decoded(placed)["layers"]):
      assert layer.keys() == merged["layers"].keys()
      for name, value in layer.items():
        np.testing.assert_allclose(value, merged["layers"][name][i], atol=1e-5)
        assert value.ndim == 1 or value.sharding.spec != P(), name
    print(f"{mesh.shape}: equal")


# --- mistakes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
  "changes,message",
  (
    ({"train.lora_rank": -1}, "lora_rank"),
    ({"train.lora_rank": 8, "train.lora_alpha": 0.0}, "lora_alpha"),
    ({"train.lora_rank": 8, "train.lora_targets": ("q_pro",)}, "did you mean 'q_proj'"),
    ({"train.lora_rank": 8, "train.lora_targets": ()}, "train nothing"),
    ({"train.lora_targets": (1,)}, "is not a string"),
  ),
  ids=("rank", "alpha", "unknown", "none", "number"),
)
def test_mistakes(changes, message):
  c = default_config()
  c.update_from_flattened_dict(changes)
  with pytest.raises(UserError, match=message):
    validate(c)


if __name__ == "__main__":
  _check_meshes()
