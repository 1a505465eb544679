"""SimPO the way TRL computes it, in torch: dense, one padded sequence per response.

The reference shares nothing with our own code but the token ids that go in. Below it
is what the tests that compare our step with it need.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding

from simpo_jax.data.packing import pack
from simpo_jax.models import sharding
from simpo_jax.models.llama import tensors
from simpo_jax.train.step import train_step, trainable
from simpo_jax.train.types import StepConfig, TrainState

MASKED = -100  # the label of prompt tokens and padding


class Reference(NamedTuple):
  """What a step on some pairs must give; per pair `[pairs]`."""

  loss: float
  simpo_loss: float
  sft_loss: float
  losses: np.ndarray  # SimPO term
  chosen: np.ndarray  # average log-probability per response token
  rejected: np.ndarray
  grads: dict[str, np.ndarray]  # by the parameter's name
  grad_norm: float


def reference(
  net,
  pairs,
  beta=2.0,
  gamma_beta_ratio=0.25,
  loss_type="sigmoid",
  label_smoothing=0.0,
  sft_weight=0.0,
) -> Reference:
  """The loss of `pairs` (of `.prompt`, `.chosen`, `.rejected` ids) and its gradient.

  Pairs are differentiated one by one, which keeps few logits and changes no sum.
  """
  torch = pytest.importorskip("torch")
  log_sigmoid = torch.nn.functional.logsigmoid
  net.zero_grad()
  # Else torch gives the pad token, which may well be the end-of-turn token, no gradient as input.
  net.get_input_embeddings().padding_idx = None
  gamma = gamma_beta_ratio * beta
  chosen_tokens = sum(len(p.chosen) for p in pairs)
  rows = []
  for pair in pairs:
    sums, counts = _response_log_probs(net, pair)
    chosen, rejected = sums / counts
    logits = beta * (chosen - rejected) - gamma
    if loss_type == "hinge":  # TRL's relu(1 - beta * (D - gamma / beta))
      loss = torch.relu(1 - logits)
    else:
      loss = -(1 - label_smoothing) * log_sigmoid(logits) - label_smoothing * log_sigmoid(-logits)
    (loss / len(pairs) - sft_weight * sums[0] / chosen_tokens).backward()
    rows.append([x.item() for x in (loss, chosen, rejected, sums[0])])
  losses, chosen, rejected, chosen_sums = (np.asarray(x) for x in zip(*rows, strict=True))
  trained = {name: p for name, p in net.named_parameters() if p.requires_grad}
  grads = {name: p.grad.numpy().copy() for name, p in trained.items()}
  sft = -chosen_sums.sum() / chosen_tokens
  return Reference(
    losses.mean() + sft_weight * sft,
    losses.mean(),
    sft,
    losses,
    chosen,
    rejected,
    grads,
    np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in grads.values())),
  )


def _response_log_probs(net, pair):
  """Sum of the log-probabilities of the chosen and the rejected tokens, and their numbers.

  Padding is on the right, where causality hides it. An attention mask would do harm: with
  a window, padding could see nothing at all, which transformers turns into NaN.
  """
  torch = pytest.importorskip("torch")
  sequences = [np.concatenate([pair.prompt, response]) for response in (pair.chosen, pair.rejected)]
  ids = torch.zeros((2, max(map(len, sequences))), dtype=torch.long)
  labels = torch.full_like(ids, MASKED)
  for i, sequence in enumerate(sequences):
    ids[i, : len(sequence)] = torch.from_numpy(sequence)
    labels[i, len(pair.prompt) : len(sequence)] = ids[i, len(pair.prompt) : len(sequence)]
  logits = net(ids).logits[:, :-1]
  labels = labels[:, 1:]
  counted = labels != MASKED
  logps = logits.log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
  return torch.where(counted, logps, 0).sum(1), counted.sum(1)


def step_config(cfg, simpo, shape, mesh=None, rules=sharding.TRAIN_RULES) -> StepConfig:
  """A float32 step of packed rows of `shape`, on one device or a mesh."""
  row = shape.row_length
  mesh = mesh or sharding.make_mesh(devices=jax.devices()[:1], hosts=1)
  return StepConfig(
    model=cfg,
    simpo=simpo,
    dtype=jnp.dtype("float32"),
    activations=jnp.dtype("float32"),
    remat="full",
    batch=shape,
    rows=NamedSharding(mesh, sharding.ROWS),
    weights=sharding.named(mesh, sharding.param_specs(cfg, mesh, rules)),
    windows=None if cfg.sliding_window is None else tuple(w or row for w in cfg.windows),
  )


def gradient_program(step: StepConfig):
  """`train_step` with an optimizer that moves nothing, and whose state is the gradient."""

  def zeros(params):
    return jax.tree.map(jnp.zeros_like, params)

  def update(updates, state, params=None):
    del state, params
    return zeros(updates), updates

  keep = optax.GradientTransformation(zeros, update)
  run = jax.jit(lambda s, b: train_step(s, b, keep, optax.constant_schedule(0.5), step))

  def init(params):
    return TrainState(params, keep.init(trainable(params, step.frozen)), jnp.int32(0))

  return run, init


def gradient_of_step(step: StepConfig, params, pairs, shape):
  """What `train_step` gives its optimizer for these pairs, and its metrics; all numpy."""
  run, init = gradient_program(step)
  state, metrics = jax.device_get(run(init(params), pack(pairs, shape)))
  assert state.step == 1 and metrics.learning_rate == 0.5
  return state.opt_state, metrics


def check_close(ours, expected, what: str, tolerance: float):
  """Equal to `tolerance` of the largest entry."""
  error, scale = np.abs(np.asarray(ours) - expected).max(), np.abs(expected).max()
  print(f"{what}: {error / scale:.1e}")
  assert error <= tolerance * scale, f"{what}: off by {error:.2e}, largest {scale:.2e}"


def check_metrics(metrics, expected: Reference, pairs, tolerance: float):
  """Per-pair statistics and losses of a step of `pairs` are the reference's."""
  present = np.arange(len(metrics.pairs.present)) < len(pairs)
  np.testing.assert_array_equal(metrics.pairs.present, present)
  assert metrics.ok and not metrics.pairs.bad.any()
  for side in ("chosen", "rejected"):
    counts = getattr(metrics.pairs, f"{side}_tokens")
    np.testing.assert_array_equal(counts[present], [len(getattr(p, side)) for p in pairs])
    check_close(getattr(metrics.pairs, side)[present], getattr(expected, side), side, tolerance)
  check_close(metrics.pairs.loss[present], expected.losses, "losses", tolerance)
  absent = jax.tree.map(lambda x: x[~present], metrics.pairs)
  assert not any(np.any(x) for x in absent), "absent pairs have zeros everywhere"
  for name in ("loss", "simpo_loss", "sft_loss"):
    check_close(getattr(metrics, name), getattr(expected, name), name, tolerance)


def check_grads(cfg, grads, expected: Reference, tolerance: float):
  """Every weight's gradient is the reference's, in our layout of Hugging Face's tensors."""

  def check(tensor, ours):
    layers = range(cfg.num_hidden_layers) if tensor.stacked else (0,)
    theirs = [expected.grads[tensor.hf_name.format(layer)] for layer in layers]
    theirs = np.stack([g.T if tensor.transposed else g for g in theirs])
    check_close(ours, theirs if tensor.stacked else theirs[0], tensor.hf_name, tolerance)

  jax.tree.map(check, tensors(cfg), grads)
