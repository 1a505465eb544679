"""SimPO: the loss on average response log-probabilities (arXiv:2405.14734)."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Float32, Int32

from simpo_jax.arith import ceil_div
from simpo_jax.kernels.loops import fori_loop
from simpo_jax.models.llama import soft_cap
from simpo_jax.settings import SimPOSettings
from simpo_jax.train.fsdp import all_reduce, own_ids

_Residuals = tuple[Array, Array, Array, Array, Array]  # hidden, matrix, index, ids, logsumexp


def simpo_loss(
  chosen: Float32[Array, "*pairs"], rejected: Float32[Array, "*pairs"], cfg: SimPOSettings
) -> Float32[Array, "*pairs"]:
  """Returns the loss of each pair, without the SFT term (SimPO, equation 6).

  With D = chosen - rejected and margin m = beta * (D - gamma_beta_ratio):
    sigmoid: -(1 - e) log sigmoid(m) - e log sigmoid(-m), with label smoothing e
    hinge:   max(0, 1 - m)

  Args:
    chosen, rejected: the average log-probability per response token, including the
      end-of-turn token.
  """
  margin = cfg.beta * (chosen - rejected - cfg.gamma_beta_ratio)
  if cfg.loss_type == "hinge":
    return jax.nn.relu(1.0 - margin)
  return -(1.0 - cfg.label_smoothing) * jax.nn.log_sigmoid(
    margin
  ) - cfg.label_smoothing * jax.nn.log_sigmoid(-margin)


def target_log_probs(
  hidden: Float[Array, "B S D"],
  matrix: Float[Array, "V D"],
  index: Int32[Array, "B targets"],
  ids: Int32[Array, "B targets"],
  chunk: int,
  axis: str | None = None,
  cap: float | None = None,
) -> Float32[Array, "B targets"]:
  """Computes log-probabilities of the target tokens only, in chunks.

  Chunks without targets are skipped, and the backward pass recomputes each chunk's logits,
  so that at most `[B, chunk, V]` logits exist at once.

  Args:
    hidden: final hidden states.
    matrix: the output embedding; with `axis`, this device's shard of its rows.
    index: the index in the row that each target is predicted from.
    ids: the target token, or -1 for an empty entry; targets come first.
    chunk: number of targets per row whose logits are computed at once.
    axis: the mesh axis that shards V evenly, inside a `jax.shard_map`.
    cap: logits become `cap * tanh(logits / cap)`.

  Returns:
    The log-probabilities, 0 for empty entries.
  """
  return _target_log_probs(hidden, matrix, index, ids, chunk, axis, cap)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def _target_log_probs(
  hidden: Array,
  matrix: Array,
  index: Array,
  ids: Array,
  chunk: int,
  axis: str | None,
  cap: float | None,
) -> Array:
  return _forward(hidden, matrix, index, ids, chunk, axis, cap)[0]


def _chunks(
  index: Int32[Array, "B targets"], ids: Int32[Array, "B targets"], chunk: int
) -> tuple[Int32[Array, "B padded"], Int32[Array, "B padded"], Int32[Array, ""]]:
  """Pads index and ids to a multiple of `chunk`; also returns the number of chunks with targets."""
  padding = ((0, 0), (0, -ids.shape[1] % chunk))
  count = jnp.max(jnp.sum(ids >= 0, axis=1))
  return jnp.pad(index, padding), jnp.pad(ids, padding, constant_values=-1), ceil_div(count, chunk)


def _chunk(x: Array, i: Array, chunk: int) -> Array:
  return jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1)


def _logits(
  hidden: Float[Array, "B S D"],
  matrix: Float[Array, "V D"],
  index: Int32[Array, "B chunk"],
  cap: float | None,
) -> tuple[Float[Array, "B chunk D"], Float32[Array, "B chunk V"]]:
  """Returns the hidden states at `index`, in the matrix's dtype, and their logits."""
  x = jnp.take_along_axis(hidden, index[..., None], axis=1).astype(matrix.dtype)
  logits = jnp.einsum("bud,vd->buv", x, matrix, preferred_element_type=jnp.float32)
  return x, soft_cap(logits, cap)


def _forward(
  hidden: Array,
  matrix: Array,
  index: Array,
  ids: Array,
  chunk: int,
  axis: str | None,
  cap: float | None,
) -> tuple[Array, _Residuals]:
  all_index, all_ids, count = _chunks(index, ids, chunk)

  def body(i: Array, out: Float32[Array, "2 B padded"]) -> Float32[Array, "2 B padded"]:
    index, ids = _chunk(all_index, i, chunk), _chunk(all_ids, i, chunk)
    _, logits = _logits(hidden, matrix, index, cap)
    local = own_ids(ids, logits.shape[-1], axis)
    target = jnp.take_along_axis(logits, jnp.maximum(local, 0)[..., None], axis=-1)[..., 0]
    lse = jax.nn.logsumexp(logits, axis=-1)
    if axis:
      target = all_reduce(jnp.where(local >= 0, target, 0.0), axis)
      most = jax.lax.pmax(lse, axis)
      lse = most + jnp.log(all_reduce(jnp.exp(lse - most), axis))
    new = jnp.stack([jnp.where(ids >= 0, target - lse, 0.0), lse])
    return jax.lax.dynamic_update_slice_in_dim(out, new, i * chunk, axis=2)

  empty = jnp.zeros((2, *all_ids.shape), jnp.float32)
  out = fori_loop(0, count, body, empty)
  logps, lse = out[:, :, : ids.shape[1]]
  return logps, (hidden, matrix, index, ids, lse)


def _backward(
  chunk: int, axis: str | None, cap: float | None, residuals: _Residuals, d_logps: Array
) -> tuple[Array, Array, None, None]:
  hidden, matrix, index, ids, lse = residuals
  if axis:
    d_logps = all_reduce(d_logps, axis)  # the result was replicated: sum its cotangents
  all_index, all_ids, count = _chunks(index, ids, chunk)
  d_logps, lse = (jnp.pad(x, ((0, 0), (0, -ids.shape[1] % chunk))) for x in (d_logps, lse))
  rows = jnp.arange(ids.shape[0], dtype=jnp.int32)[:, None]

  def body(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
    d_hidden, d_matrix = carry
    index, ids = _chunk(all_index, i, chunk), _chunk(all_ids, i, chunk)
    x, logits = _logits(hidden, matrix, index, cap)
    scale = jnp.where(ids >= 0, _chunk(d_logps, i, chunk), 0.0)[..., None]
    local = own_ids(ids, logits.shape[-1], axis)
    hit = jnp.arange(logits.shape[-1], dtype=jnp.int32) == local[..., None]
    d_logits = (hit - jnp.exp(logits - _chunk(lse, i, chunk)[..., None])) * scale
    if cap is not None:
      d_logits *= 1 - (logits / cap) ** 2
    # Empty entries have no saved logsumexp: their exponentials may overflow.
    d_logits = jnp.where(ids[..., None] >= 0, d_logits, 0.0).astype(x.dtype)
    d_x = jnp.einsum("buv,vd->bud", d_logits, matrix, preferred_element_type=jnp.float32)
    # Flattened to contract over a single axis; see `linear.matmul`.
    d_logits, x = (y.reshape(-1, y.shape[-1]) for y in (d_logits, x))
    d_matrix += jnp.einsum("nv,nd->vd", d_logits, x, preferred_element_type=jnp.float32)
    return d_hidden.at[rows, index].add(d_x), d_matrix

  zeros = jnp.zeros(hidden.shape, jnp.float32), jnp.zeros(matrix.shape, jnp.float32)
  d_hidden, d_matrix = fori_loop(0, count, body, zeros)
  return d_hidden.astype(hidden.dtype), d_matrix.astype(matrix.dtype), None, None


_target_log_probs.defvjp(_forward, _backward)
