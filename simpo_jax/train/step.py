"""One SimPO step on packed rows: loss, gradient accumulation, optimizer update."""

from typing import Any, NamedTuple, TypeVar, cast

import jax
import jax.numpy as jnp
import optax
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Float, Float32, Int32

from simpo_jax.kernels.loops import fori_loop
from simpo_jax.kernels.range_attention import range_attention
from simpo_jax.models import llama
from simpo_jax.models.lora import beside_weights, scaled
from simpo_jax.train import fsdp
from simpo_jax.train.batch import Batch, MicroBatch
from simpo_jax.train.loss import simpo_loss, target_log_probs
from simpo_jax.train.types import Metrics, PairStats, StepConfig, TrainState

_Scalar = Float32[Array, ""]
_Part = TypeVar("_Part")
_Loss = tuple[_Scalar, tuple[_Scalar, PairStats]]  # loss, (sum of the SFT term, statistics)


class _Totals(NamedTuple):
  """Denominators of a step's means."""

  pairs: Int32[Array, ""]
  chosen_tokens: Int32[Array, ""]


def _micro_loss(params: llama.Params, micro: MicroBatch, totals: _Totals, cfg: StepConfig) -> _Loss:
  """The micro-batch's share of the step's loss, and its per-pair statistics.

  The shares of a step add up to the mean SimPO loss over pairs + sft_weight * the mean
  cross-entropy over chosen tokens. Each device computes its local rows.
  """

  def spec(sharding: NamedSharding) -> P:
    return sharding.spec

  def stacked(x: Array) -> Array:
    return x[None]

  def local(params: llama.Params, micro: MicroBatch, totals: _Totals) -> Any:
    return jax.tree.map(stacked, _per_device_loss(params, micro, totals, cfg))

  def add(x: Array) -> Array:
    return x.any(0) if x.dtype == jnp.bool_ else x.sum(0)

  rows = cfg.rows.spec[0]
  parts = jax.shard_map(
    local,
    mesh=cfg.rows.mesh,
    in_specs=(jax.tree.map(spec, cfg.weights), P(rows), P()),
    out_specs=P(rows),
    check_vma=False,  # Pallas calls do not declare over which axes their results vary
  )(params, micro, totals)
  return jax.tree.map(add, parts)


def _per_device_loss(
  params: llama.Params, micro: MicroBatch, totals: _Totals, cfg: StepConfig
) -> _Loss:
  """`_micro_loss` for one device's rows, given its shards of the weights."""
  mesh = cfg.rows.mesh
  stacked: dict[str, NamedSharding] = beside_weights(cfg.weights)["layers"]
  specs = {name: P(*sharding.spec[1:]) for name, sharding in stacked.items()}

  def attend(
    q: Float[Array, "B S H h"],
    k: Float[Array, "B S K h"],
    v: Float[Array, "B S K h"],
    window: Int32[Array, ""] | None,
  ) -> tuple[Float[Array, "B S H h"], None]:
    mask = micro.k_start, micro.k_end, micro.positions
    cap = cfg.model.attn_logit_softcapping
    out = range_attention(q, k, v, *mask, window=window, soft_cap=cap, impl=cfg.attention)
    return out, None

  def gather(p: llama.Params) -> llama.Params:
    return {name: fsdp.gather(w, specs[name], cfg.dtype) for name, w in scaled(p, cfg.lora).items()}

  def all_reduce(x: Array) -> Array:
    return fsdp.all_reduce(x, fsdp.TENSOR) if mesh.shape[fsdp.TENSOR] > 1 else x

  table = cfg.weights["embed"].spec
  embedded = fsdp.lookup(params["embed"], table, micro.tokens, cfg.activations)
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
  vocab_axis = fsdp.TENSOR if fsdp.is_tensor_sharded(table[0]) else None
  logps = target_log_probs(
    hidden,
    matrix,
    micro.target_index,
    micro.target_id,
    cfg.logits_chunk,
    vocab_axis,
    cfg.model.final_logit_softcapping,
  )
  return _pair_losses(logps, micro, totals, cfg)


def _pair_losses(
  logps: Float32[Array, "B targets"], micro: MicroBatch, totals: _Totals, cfg: StepConfig
) -> _Loss:
  """`_micro_loss` for one device's rows, given the log-probabilities of their targets."""

  @jax.vmap
  def by_response(x: Float32[Array, " targets"], seq: Int32[Array, " targets"]) -> Array:
    return jax.ops.segment_sum(x, seq, 2 * cfg.batch.slots)

  sums, counts = (
    by_response(x, micro.target_seq) for x in (logps, (micro.target_id >= 0).astype(jnp.float32))
  )
  average = (sums / jnp.maximum(counts, 1)).reshape(-1, 2)  # [B * slots, chosen | rejected]
  pair = micro.pair.reshape(-1)
  present = pair < cfg.batch.pairs
  losses = jnp.where(present, simpo_loss(average[:, 0], average[:, 1], cfg.simpo), 0.0)
  sft_sum = -jnp.sum(sums.reshape(-1, 2)[:, 0])
  loss = jnp.sum(losses) / totals.pairs
  loss += cfg.simpo.sft_weight * sft_sum / totals.chosen_tokens
  counts = counts.reshape(-1, 2).astype(jnp.int32)

  def by_pair(x: Array) -> Array:
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


def trainable(tree: dict[str, _Part], frozen: tuple[str, ...]) -> dict[str, _Part]:
  """Returns the parts of a tree of weights that training updates."""
  return {name: part for name, part in tree.items() if name not in frozen}


def _micro(batch: Batch, index: Int32[Array, ""]) -> MicroBatch:
  return MicroBatch(*(jnp.asarray(x)[index] for x in batch[:-1]))


def _totals(batch: Batch, cfg: StepConfig) -> _Totals:
  total_pairs = jnp.maximum(jnp.sum(batch.pair < cfg.batch.pairs), 1)
  is_chosen = (batch.target_id >= 0) & (batch.target_seq % 2 == 0)
  return _Totals(total_pairs, jnp.maximum(jnp.sum(is_chosen), 1))


def _no_stats(cfg: StepConfig) -> PairStats:
  f, i, b = (jnp.zeros((cfg.batch.pairs,), t) for t in (jnp.float32, jnp.int32, jnp.bool_))
  return PairStats(f, f, i, i, f, b, b)


def _merge(a: _Loss, b: _Loss) -> _Loss:
  """Adds the losses of disjoint sets of pairs; statistics of absent pairs are 0 or False."""

  def add(x: Array, y: Array) -> Array:
    return x | y if x.dtype == jnp.bool_ else x + y

  return jax.tree.map(add, a, b)


def _metrics(
  step_loss: _Loss,
  totals: _Totals,
  grad_norm: _Scalar,
  learning_rate: _Scalar,
  ok: Bool[Array, ""],
) -> Metrics:
  """The metrics of a step whose micro-batches add up to `step_loss`."""
  loss, (sft_sum, stats) = step_loss
  return Metrics(
    loss,
    jnp.sum(stats.loss) / totals.pairs,
    sft_sum / totals.chosen_tokens,
    grad_norm,
    learning_rate,
    ok,
    stats,
  )


def _zeros(weight: Array) -> Array:
  return jnp.zeros(weight.shape, jnp.float32)


def _add(total: Array, part: Array) -> Array:
  return total + part.astype(total.dtype)


def _as(gradient: Array, weight: Array) -> Array:
  return gradient.astype(weight.dtype)


def train_step(
  state: TrainState,
  batch: Batch,
  tx: optax.GradientTransformation,
  schedule: optax.Schedule,
  cfg: StepConfig,
) -> tuple[TrainState, Metrics]:
  """Performs one optimizer step, accumulating gradients over micro-batches.

  Only the micro-batches in use are computed. If the loss or a gradient is not finite, the
  state is returned unchanged and `Metrics.ok` is False.
  """
  totals = _totals(batch, cfg)
  learning, shardings = (trainable(tree, cfg.frozen) for tree in (state.params, cfg.weights))

  def micro_loss(learning: llama.Params, micro: MicroBatch) -> _Loss:
    return _micro_loss({**state.params, **learning}, micro, totals, cfg)

  gradient = jax.value_and_grad(micro_loss, has_aux=True)

  def micro_step(
    index: Int32[Array, ""], carry: tuple[llama.Params, _Loss]
  ) -> tuple[llama.Params, _Loss]:
    grads, step_loss = carry
    (loss, (sft_sum, stats)), part_grads = gradient(learning, _micro(batch, index))
    part_grads = jax.lax.with_sharding_constraint(part_grads, shardings)
    finite = jnp.isfinite(optax.tree.norm(part_grads))
    bad = stats.bad | (stats.present & ~finite)
    part = loss, (sft_sum, stats._replace(bad=bad))
    return jax.tree.map(_add, grads, part_grads), _merge(step_loss, part)

  zero = jnp.zeros((), jnp.float32)
  init = (jax.tree.map(_zeros, learning), (zero, (zero, _no_stats(cfg))))
  grads, step_loss = fori_loop(0, jnp.asarray(batch.num_micro), micro_step, init)
  grad_norm = optax.tree.norm(grads)
  ok = jnp.isfinite(step_loss[0]) & jnp.isfinite(grad_norm)
  learning_rate = jnp.asarray(schedule(state.step), jnp.float32)

  def update(state: TrainState) -> TrainState:
    before = trainable(state.params, cfg.frozen)
    updates, opt_state = tx.update(jax.tree.map(_as, grads, before), state.opt_state, before)
    after = cast(llama.Params, optax.apply_updates(before, updates))
    average = state.average
    if average is not None:
      moved = optax.incremental_update(after, average, 1 - cfg.ema_decay)
      average = cast(llama.Params, moved)
    return TrainState({**state.params, **after}, opt_state, state.step + 1, average)

  def keep(state: TrainState) -> TrainState:
    return state

  state = cast(TrainState, jax.lax.cond(ok, update, keep, state))
  return state, _metrics(step_loss, totals, grad_norm, learning_rate, ok)


def evaluate_step(params: llama.Params, batch: Batch, cfg: StepConfig) -> Metrics:
  """Computes the loss and per-pair statistics of one batch, without gradients."""
  totals = _totals(batch, cfg)

  def micro_step(index: Int32[Array, ""], step_loss: _Loss) -> _Loss:
    return _merge(step_loss, _micro_loss(params, _micro(batch, index), totals, cfg))

  zero = jnp.zeros((), jnp.float32)
  init = (zero, (zero, _no_stats(cfg)))
  step_loss = fori_loop(0, jnp.asarray(batch.num_micro), micro_step, init)
  return _metrics(step_loss, totals, zero, zero, jnp.isfinite(step_loss[0]))
