"""The packed SimPO step against a dense torch one, and its parts against dense ones."""

import dataclasses
import functools
import tempfile

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from simpo_jax.data.packing import pack
from simpo_jax.data.types import PairTokens
from simpo_jax.settings import SimPOSettings, TrainSettings
from simpo_jax.train import optimizer
from simpo_jax.train.batch import batch_shape
from simpo_jax.train.loss import simpo_loss, target_log_probs
from simpo_jax.train.step import evaluate_step, train_step
from simpo_jax.train.types import TrainState
from support.hf_models import GEMMA2, VOCAB, hf_model, load
from support.simpo_reference import (
  check_close,
  check_grads,
  check_metrics,
  gradient_of_step,
  reference,
  step_config,
)
from support.tiers import sweep

pytestmark = pytest.mark.model

# References are float64, so only our own float32 rounding counts.
TOLERANCE = 1e-5
CHUNK = 256
_close = functools.partial(check_close, tolerance=TOLERANCE)
MODELS = {  # name: transformers class, and changes to its config
  "llama": ("Llama", {}),
  "qwen2-tied": ("Qwen2", {"tie_word_embeddings": True}),
  "mistral-window": ("Mistral", {"sliding_window": 5}),
  "gemma2": ("Gemma2", {**GEMMA2, "sliding_window": 5}),
}
# (prompt, chosen, rejected) tokens; extremes are a prompt and responses of one token.
LENGTHS = ((5, 7, 3), (1, 1, 9), (12, 4, 4), (3, 10, 1), (8, 2, 6))


@functools.cache
def _model(name):
  """The float64 torch model, our config of it, our float32 weights."""
  kind, changes = MODELS[name]
  net = hf_model(kind, **changes)
  with tempfile.TemporaryDirectory() as folder:
    net.save_pretrained(folder)
    return net.double(), *load(folder)


def _pairs(lengths=LENGTHS, vocab=VOCAB):
  rng = np.random.default_rng(0)
  return [
    PairTokens(str(i), *(rng.integers(vocab, size=n).astype(np.int32) for n in three))
    for i, three in enumerate(lengths)
  ]


def _check_step(name, simpo, shape):
  """One step on `_pairs()` against the reference, which it returns."""
  net, cfg, params = _model(name)
  expected = reference(net, _pairs(), **dataclasses.asdict(simpo))
  grads, metrics = gradient_of_step(step_config(cfg, simpo, shape), params, _pairs(), shape)
  check_metrics(metrics, expected, _pairs(), TOLERANCE)
  check_grads(cfg, grads, expected, TOLERANCE)
  _close(metrics.grad_norm, expected.grad_norm, "gradient norm")
  return expected


@sweep(
  "name, simpo",
  [
    ("llama", SimPOSettings()),
    ("gemma2", SimPOSettings(label_smoothing=0.1, sft_weight=0.3)),
    ("llama", SimPOSettings(beta=0.7, gamma_beta_ratio=1.5, label_smoothing=0.2)),
    ("llama", SimPOSettings(beta=1.5, gamma_beta_ratio=0.1, sft_weight=0.3)),
    ("qwen2-tied", SimPOSettings(label_smoothing=0.1, sft_weight=2.0)),
    ("mistral-window", SimPOSettings(label_smoothing=0.1)),
  ],
  default=2,
  ids=str,
)
def test_step_equals_torch(name, simpo):
  _check_step(name, simpo, batch_shape(5, row_length=64, slots=4, rows=2))


def test_hinge_equals_torch_on_both_of_its_sides():
  simpo = SimPOSettings(beta=3.0, loss_type="hinge", label_smoothing=0.3)
  shape = batch_shape(5, row_length=64, slots=4, rows=2)
  expected = _check_step("llama", simpo, shape)
  assert 0 < np.sum(expected.losses > 0) < 5


@sweep(
  "shape, micro_batches",
  [
    (batch_shape(9, row_length=32, slots=2, rows=2), 2),  # fewer than can be; an empty row
    (batch_shape(5, row_length=32, slots=1, rows=5), 1),  # each pair alone in its row
    (batch_shape(5, row_length=128, slots=8, rows=1), 1),  # all in one row
    (batch_shape(5, row_length=32, slots=1, rows=1), 5),  # each alone in its micro-batch
  ],
  ids=str,
)
def test_layout_does_not_matter(shape, micro_batches):
  assert pack(_pairs(), shape).num_micro == micro_batches
  _check_step("llama", SimPOSettings(sft_weight=0.5), shape)


def test_evaluation_equals_torch():
  net, cfg, params = _model("llama")
  simpo = SimPOSettings(sft_weight=0.5)
  shape = batch_shape(9, row_length=32, slots=2, rows=2)
  step = step_config(cfg, simpo, shape)
  metrics = jax.jit(lambda p, b: evaluate_step(p, b, step))(params, pack(_pairs(), shape))
  expected = reference(net, _pairs(), **dataclasses.asdict(simpo))
  check_metrics(jax.device_get(metrics), expected, _pairs(), TOLERANCE)


def test_non_finite_step_changes_nothing_and_names_the_micro_batch():
  _, cfg, params = _model("llama")
  shape = batch_shape(3, row_length=64, slots=2, rows=1)
  pairs = _pairs(((20, 9, 8), (9, 7, 5), (8, 4, 4)), vocab=VOCAB - 1)
  batch = pack(pairs, shape)
  assert batch.pair[:2, 0].tolist() == [[0, 1], [2, 3]], "0 and 1 share a micro-batch"
  settings = TrainSettings()
  schedule = optimizer.make_schedule(settings)
  tx = optimizer.make_optimizer(settings, schedule, cfg)
  step = step_config(cfg, SimPOSettings(), shape)
  run = jax.jit(lambda s, b: train_step(s, b, tx, schedule, step))
  # The last token's embedding is NaN, and a prompt gets that token or not.
  params = {**params, "embed": params["embed"].at[VOCAB - 1].set(jnp.nan)}
  before, metrics = jax.device_get(run(TrainState(params, tx.init(params), jnp.int32(3)), batch))
  assert metrics.ok and before.step == 4 and not metrics.pairs.bad.any()

  for victim, bad in ((2, [False, False, True]), (1, [True, True, False])):
    poisoned = list(pairs)
    prompt = pairs[victim].prompt.copy()
    prompt[1] = VOCAB - 1
    poisoned[victim] = pairs[victim]._replace(prompt=prompt)
    after, metrics = jax.device_get(run(before, pack(poisoned, shape)))
    assert not metrics.ok
    assert metrics.pairs.bad.tolist() == bad
    assert metrics.pairs.present.all()
    chex.assert_trees_all_equal(after, before, strict=True)


@pytest.mark.parametrize(
  "simpo, chosen, rejected, expected",
  [
    # margin 2 * (0.5 - 0.25) = 0.5; -log sigmoid(0.5) = 0.474077, and of -0.5 0.974077
    (SimPOSettings(), -1.0, -1.5, 0.474077),
    (SimPOSettings(label_smoothing=0.1), -1.0, -1.5, 0.9 * 0.474077 + 0.1 * 0.974077),
    (SimPOSettings(loss_type="hinge", label_smoothing=0.1), -1.0, -1.5, 0.5),
    (SimPOSettings(loss_type="hinge"), -1.0, -2.0, 0.0),
    (SimPOSettings(gamma_beta_ratio=0.0), -3.0, -3.0, 0.693147),
    (SimPOSettings(beta=10.0), -200.0, -1.0, 1992.5),  # far out, no overflow
    (SimPOSettings(beta=10.0), -1.0, -200.0, 0.0),
  ],
)
def test_simpo_loss_by_hand(simpo, chosen, rejected, expected):
  ours = simpo_loss(jnp.float32(chosen), jnp.float32(rejected), simpo)
  np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cap", (None, 30.0))
def test_target_log_probs_equal_dense_log_softmax(cap):
  torch = pytest.importorskip("torch")
  rng = np.random.default_rng(0)
  B, S, D, V = 3, 40, 16, 97
  counts = (CHUNK + 2, 7, 0)
  U = CHUNK + 5  # more than a chunk, and not a multiple of it
  hidden, matrix = rng.normal(size=(B, S, D)), rng.normal(size=(V, D))
  index, ids = np.zeros((B, U), np.int32), np.full((B, U), -1, np.int32)
  for row, n in enumerate(counts):  # positions repeat: a prompt's end predicts two tokens
    index[row, :n], ids[row, :n] = rng.integers(1, S, n), rng.integers(V, size=n)
  hidden[:, 0] *= 1e4  # where empty entries point: their exponentials overflow
  hidden, matrix, cotangent = (
    np.asarray(x, np.float32) for x in (hidden, matrix, rng.normal(size=(B, U)))
  )

  x, w = (torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in (hidden, matrix))
  at = torch.tensor(index, dtype=torch.long)[..., None]
  logits = x.gather(1, at.expand(-1, -1, D)) @ w.T
  logits = logits if cap is None else cap * torch.tanh(logits / cap)
  logps = logits.log_softmax(-1)
  logps = logps.gather(2, torch.tensor(ids, dtype=torch.long).clamp(min=0)[..., None])[..., 0]
  expected = torch.where(torch.tensor(ids >= 0), logps, 0)
  (expected * torch.tensor(cotangent)).sum().backward()

  targets = jnp.asarray(index), jnp.asarray(ids)
  ours, pullback = jax.vjp(
    lambda h, m: target_log_probs(h, m, *targets, CHUNK, None, cap),
    jnp.asarray(hidden),
    jnp.asarray(matrix),
  )
  d_hidden, d_matrix = pullback(jnp.asarray(cotangent))
  assert not np.any(np.asarray(ours)[ids < 0])
  _close(ours, expected.detach().numpy(), "log-probabilities")
  _close(d_hidden, x.grad.numpy(), "d hidden")
  _close(d_matrix, w.grad.numpy(), "d matrix")
  assert not np.any(np.asarray(d_hidden)[:, 0]) and not np.any(np.asarray(d_hidden)[2])
