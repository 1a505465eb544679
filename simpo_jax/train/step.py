"""One SimPO step on packed rows: losses, gradients over micro-batches, the update."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from simpo_jax.kernels.range_attention import range_attention
from simpo_jax.models import llama
from simpo_jax.models.config import ModelConfig
from simpo_jax.models.lora import Lora, beside_weights, scaled
from simpo_jax.settings import SimPOSettings
from simpo_jax.train import fsdp
from simpo_jax.train.batch import Batch, BatchShape
from simpo_jax.train.loss import simpo_loss, target_log_probs


class TrainState(NamedTuple):
  """What training changes; donated to every launch and updated in place."""

  params: llama.Params  # and adapters, if it is those that are trained
  opt_state: Any  # of what is not frozen
  step: jax.Array  # int32 [], optimizer steps done
  average: Any = None  # of what is not frozen, over the steps, if there is to be one

  @property
  def weights(self) -> llama.Params:
    """What evaluation and generation use."""
    return {**self.params, **(self.average or {})}


class StepConfig(NamedTuple):
  """The choices that shape the training and evaluation branches."""

  model: ModelConfig
  simpo: SimPOSettings
  dtype: Any  # compute dtype
  remat: str  # what the backward pass computes again; see `settings.train.REMAT`
  batch: BatchShape
  rows: Any  # NamedSharding of activations `[rows, S, D]`
  weights: Any  # NamedShardings of the weights, which gradients keep
  attention: str = "xla"  # implementation of range attention
  frozen: tuple[str, ...] = ()  # parts of the weights that training leaves as they are
  lora: Lora | None = None  # the adapters; all else is frozen then
  ema_decay: float = 0.0  # of the weights' average; 0: none
  logits_chunk: int = 256  # response tokens of a row whose logits exist at once
  windows: tuple[int, ...] | None = None  # of each layer, if some sequence is longer than one


class PairStats(NamedTuple):
  """Per pair of the step, `[pairs]`; entries of absent pairs are 0."""

  chosen: jax.Array  # float32, average log-probability of the chosen response
  rejected: jax.Array
  chosen_tokens: jax.Array  # int32
  rejected_tokens: jax.Array
  loss: jax.Array  # float32, SimPO term
  present: jax.Array  # bool
  bad: jax.Array  # bool: not finite itself, or in the micro-batch whose gradient is not


class Metrics(NamedTuple):
  """Of a step or an evaluation batch; scalars unless said otherwise."""

  loss: jax.Array
  simpo_loss: jax.Array
  sft_loss: jax.Array
  grad_norm: jax.Array
  learning_rate: jax.Array
  ok: jax.Array  # bool: loss and gradient are finite; if not, no update was applied
  pairs: PairStats


def _micro_loss(params, micro: Batch, total_pairs, total_chosen_tokens, cfg: StepConfig):
  """The micro-batch's share of the step's loss, and its per-pair statistics.

  Shares add up to: mean over pairs of the SimPO loss + sft_weight * mean over all
  chosen tokens of their cross-entropy. Each device computes its own rows.
  """
  weights = jax.tree.map(lambda sharding: sharding.spec, cfg.weights)
  rows = cfg.rows.spec[0]

  def local(*args):
    return jax.tree.map(lambda x: x[None], _per_device_loss(*args, cfg=cfg))

  parts = jax.shard_map(
    local,
    mesh=cfg.rows.mesh,
    in_specs=(weights, P(rows), P(), P()),
    out_specs=P(rows),
    check_vma=False,  # a Pallas call does not say over which axes its results vary
  )(params, micro, total_pairs, total_chosen_tokens)
  loss, aux = jax.tree.map(lambda x: x.any(0) if x.dtype == jnp.bool_ else x.sum(0), parts)
  return loss, aux


def _per_device_loss(params, micro: Batch, total_pairs, total_chosen_tokens, *, cfg: StepConfig):
  """`_micro_loss` of one device's rows and shards of the weights."""
  mesh = cfg.rows.mesh
  stacked = beside_weights(cfg.weights)["layers"]
  specs = {name: P(*sharding.spec[1:]) for name, sharding in stacked.items()}

  def attend(q, k, v, window):
    mask = micro.k_start, micro.k_end, micro.positions
    cap = cfg.model.attn_logit_softcapping
    out = range_attention(q, k, v, *mask, window=window, soft_cap=cap, impl=cfg.attention)
    return out, None

  def gather(p):
    return {name: fsdp.gather(w, specs[name], cfg.dtype) for name, w in scaled(p, cfg.lora).items()}

  def all_reduce(x):
    return jax.lax.psum(x, fsdp.TENSOR) if mesh.shape[fsdp.TENSOR] > 1 else x

  table = cfg.weights["embed"].spec
  embedded = fsdp.lookup(params["embed"], table, micro.tokens, cfg.dtype)
  hidden = llama.forward(
    beside_weights(params),
    llama.scale_embeddings(embedded, cfg.model),
    micro.positions,
    attend,
    cfg.model,
    gather,
    all_reduce,
    fsdp.remat(cfg.remat, single_device=mesh.size == 1),
    None if cfg.windows is None else jnp.asarray(cfg.windows, jnp.int32),
  )
  matrix = fsdp.gather(llama.unembed_matrix(params), table, cfg.dtype)
  cut = fsdp.TENSOR if fsdp.is_tensor_sharded(table[0]) else None
  logps = target_log_probs(
    hidden,
    matrix,
    micro.target_index,
    micro.target_id,
    cfg.logits_chunk,
    cut,
    cfg.model.final_logit_softcapping,
  )
  return _pair_losses(logps, micro, total_pairs, total_chosen_tokens, cfg)


def _pair_losses(logps: jax.Array, micro: Batch, total_pairs, total_chosen_tokens, cfg: StepConfig):
  """The loss of one device's rows, from their targets' log-probabilities; as `_micro_loss`.

  Args:
    logps: float32 `[rows, targets]`.
  """
  sums, counts = (
    jax.vmap(lambda x, seq: jax.ops.segment_sum(x, seq, 2 * cfg.batch.slots))(x, micro.target_seq)
    for x in (logps, (micro.target_id >= 0).astype(jnp.float32))
  )
  average = (sums / jnp.maximum(counts, 1)).reshape(-1, 2)  # [rows * G, chosen | rejected]
  pair = micro.pair.reshape(-1)
  present = pair < cfg.batch.pairs
  losses = jnp.where(present, simpo_loss(average[:, 0], average[:, 1], cfg.simpo), 0.0)
  sft_sum = -jnp.sum(sums.reshape(-1, 2)[:, 0])
  loss = jnp.sum(losses) / total_pairs
  loss += cfg.simpo.sft_weight * sft_sum / total_chosen_tokens
  counts = counts.reshape(-1, 2).astype(jnp.int32)

  def by_pair(x):
    return jnp.zeros((cfg.batch.pairs,), x.dtype).at[pair].set(x, mode="drop")

  stats = PairStats(
    by_pair(average[:, 0]),
    by_pair(average[:, 1]),
    by_pair(counts[:, 0]),
    by_pair(counts[:, 1]),
    by_pair(losses),
    by_pair(present),
    by_pair(present & ~jnp.isfinite(losses)),
  )
  return loss, (sft_sum, stats)


def trainable(tree: dict[str, Any], frozen: tuple[str, ...]) -> dict[str, Any]:
  """The parts of a tree of weights that training changes."""
  return {name: part for name, part in tree.items() if name not in frozen}


def _micro(batch: Batch, index: jax.Array) -> Batch:
  """One micro-batch: the arrays without their leading axis."""
  return jax.tree.map(lambda x: x[index], batch._replace(num_micro=None))


def _totals(batch: Batch, cfg: StepConfig):
  total_pairs = jnp.maximum(jnp.sum(batch.pair < cfg.batch.pairs), 1)
  is_chosen = (batch.target_id >= 0) & (batch.target_seq % 2 == 0)
  return total_pairs, jnp.maximum(jnp.sum(is_chosen), 1)


def _no_stats(cfg: StepConfig) -> PairStats:
  f, i, b = (jnp.zeros((cfg.batch.pairs,), t) for t in (jnp.float32, jnp.int32, jnp.bool_))
  return PairStats(f, f, i, i, f, b, b)


def _merge(a: PairStats, b: PairStats) -> PairStats:
  """Statistics of disjoint sets of pairs: every absent entry is 0 or False."""
  return jax.tree.map(lambda x, y: x | y if x.dtype == jnp.bool_ else x + y, a, b)


def _metrics(loss, sft_sum, stats, totals, grad_norm, learning_rate, ok) -> Metrics:
  total_pairs, total_chosen_tokens = totals
  return Metrics(
    loss,
    jnp.sum(stats.loss) / total_pairs,
    sft_sum / total_chosen_tokens,
    grad_norm,
    learning_rate,
    ok,
    stats,
  )


def train_step(
  state: TrainState,
  batch: Batch,
  tx: optax.GradientTransformation,
  schedule: optax.Schedule,
  cfg: StepConfig,
) -> tuple[TrainState, Metrics]:
  """One optimizer step on one batch, micro-batch by micro-batch.

  Only the micro-batches in use are computed. If the loss or a gradient is not
  finite, the state comes back unchanged and `ok` is False.
  """
  totals = _totals(batch, cfg)
  learning, shardings = (trainable(tree, cfg.frozen) for tree in (state.params, cfg.weights))

  def micro_loss(learning, micro):
    return _micro_loss({**state.params, **learning}, micro, *totals, cfg)

  gradient = jax.value_and_grad(micro_loss, has_aux=True)

  def micro_step(index, carry):
    grads, loss, sft_sum, stats = carry
    micro = _micro(batch, index)
    (part, (sft_part, part_stats)), part_grads = gradient(learning, micro)
    part_grads = jax.lax.with_sharding_constraint(part_grads, shardings)
    finite = jnp.isfinite(optax.tree.norm(part_grads))
    bad = part_stats.bad | (part_stats.present & ~finite)
    return (
      jax.tree.map(lambda a, b: a + b.astype(a.dtype), grads, part_grads),
      loss + part,
      sft_sum + sft_part,
      _merge(stats, part_stats._replace(bad=bad)),
    )

  zero = jnp.zeros((), jnp.float32)
  sums = jax.tree.map(lambda w: jnp.zeros(w.shape, jnp.float32), learning)
  init = (sums, zero, zero, _no_stats(cfg))
  grads, loss, sft_sum, stats = jax.lax.fori_loop(0, batch.num_micro, micro_step, init)
  grad_norm = optax.tree.norm(grads)
  ok = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
  learning_rate = jnp.asarray(schedule(state.step), jnp.float32)

  def update(state):
    before = trainable(state.params, cfg.frozen)
    typed = jax.tree.map(lambda g, w: g.astype(w.dtype), grads, before)
    updates, opt_state = tx.update(typed, state.opt_state, before)
    after = optax.apply_updates(before, updates)
    average = state.average
    if average is not None:
      average = optax.incremental_update(after, average, 1 - cfg.ema_decay)
    return TrainState({**state.params, **after}, opt_state, state.step + 1, average)

  state = jax.lax.cond(ok, update, lambda state: state, state)
  return state, _metrics(loss, sft_sum, stats, totals, grad_norm, learning_rate, ok)


def evaluate_step(params: llama.Params, batch: Batch, cfg: StepConfig) -> Metrics:
  """The loss and per-pair statistics of one batch, forward only."""
  totals = _totals(batch, cfg)

  def micro_step(index, carry):
    loss, sft_sum, stats = carry
    micro = _micro(batch, index)
    part, (sft_part, part_stats) = _micro_loss(params, micro, *totals, cfg)
    return loss + part, sft_sum + sft_part, _merge(stats, part_stats)

  zero = jnp.zeros((), jnp.float32)
  loss, sft_sum, stats = jax.lax.fori_loop(
    0, batch.num_micro, micro_step, (zero, zero, _no_stats(cfg))
  )
  return _metrics(loss, sft_sum, stats, totals, zero, zero, jnp.isfinite(loss))
