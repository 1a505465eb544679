"""SimPO: the loss on average response log-probabilities (arXiv:2405.14734)."""

import functools

import jax
import jax.numpy as jnp

from simpo_jax.models.llama import soft_cap
from simpo_jax.settings import SimPOSettings
from simpo_jax.train.fsdp import own_ids


def simpo_loss(chosen: jax.Array, rejected: jax.Array, cfg: SimPOSettings) -> jax.Array:
  """The loss of each pair, without the SFT term (SimPO, equation 6).

  With D = chosen - rejected and margin m = beta * (D - gamma_beta_ratio):
    sigmoid: -(1 - e) log sigmoid(m) - e log sigmoid(-m), e the label smoothing
    hinge:   max(0, 1 - m)

  Args:
    chosen, rejected: float32 `[...]`, the average log-probability per response
      token, end-of-turn token included.

  Returns:
    float32 `[...]`.
  """
  margin = cfg.beta * (chosen - rejected - cfg.gamma_beta_ratio)
  if cfg.loss_type == "hinge":
    return jax.nn.relu(1.0 - margin)
  return -(1.0 - cfg.label_smoothing) * jax.nn.log_sigmoid(
    margin
  ) - cfg.label_smoothing * jax.nn.log_sigmoid(-margin)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6))
def target_log_probs(
  hidden: jax.Array,
  matrix: jax.Array,
  index: jax.Array,
  ids: jax.Array,
  chunk: int,
  axis: str | None = None,
  cap: float | None = None,
) -> jax.Array:
  """Log-probabilities of the target tokens alone, a chunk of logits at a time.

  Chunks without targets are not computed, and the backward pass computes each
  chunk's logits again: at most `[B, chunk, V]` of them ever exist.

  Args:
    hidden: `[B, S, D]`, final hidden states.
    matrix: `[V, D]`, the output embedding, or with `axis` this device's part of its rows.
    index: int32 `[B, U]`, where in the row each target is predicted from.
    ids: int32 `[B, U]`, the target token, or -1 for an empty entry; targets come first.
    chunk: targets of a row whose logits exist at once.
    axis: the mesh axis that cuts V evenly, inside a `jax.shard_map`.
    cap: logits become `cap * tanh(logits / cap)`.

  Returns:
    float32 `[B, U]`, 0 for empty entries.
  """
  return _forward(hidden, matrix, index, ids, chunk, axis, cap)[0]


def _chunks(index: jax.Array, ids: jax.Array, chunk: int) -> tuple[jax.Array, jax.Array, jax.Array]:
  """Index and ids padded to whole chunks, and the number of chunks with targets."""
  padding = ((0, 0), (0, -ids.shape[1] % chunk))
  count = jnp.max(jnp.sum(ids >= 0, axis=1))
  return jnp.pad(index, padding), jnp.pad(ids, padding, constant_values=-1), -(-count // chunk)


def _chunk(x: jax.Array, i: jax.Array, chunk: int) -> jax.Array:
  return jax.lax.dynamic_slice_in_dim(x, i * chunk, chunk, axis=1)


def _logits(hidden, matrix, index, cap):
  x = jnp.take_along_axis(hidden, index[..., None], axis=1)
  logits = jnp.einsum("bud,vd->buv", x, matrix.astype(x.dtype), preferred_element_type=jnp.float32)
  return x, soft_cap(logits, cap)


def _forward(hidden, matrix, index, ids, chunk, axis, cap):
  all_index, all_ids, count = _chunks(index, ids, chunk)

  def body(i, out):
    index, ids = _chunk(all_index, i, chunk), _chunk(all_ids, i, chunk)
    _, logits = _logits(hidden, matrix, index, cap)
    own = own_ids(ids, logits.shape[-1], axis)
    target = jnp.take_along_axis(logits, jnp.maximum(own, 0)[..., None], axis=-1)[..., 0]
    lse = jax.nn.logsumexp(logits, axis=-1)
    if axis:
      target = jax.lax.psum(jnp.where(own >= 0, target, 0.0), axis)
      most = jax.lax.pmax(lse, axis)
      lse = most + jnp.log(jax.lax.psum(jnp.exp(lse - most), axis))
    new = jnp.stack([jnp.where(ids >= 0, target - lse, 0.0), lse])
    return jax.lax.dynamic_update_slice_in_dim(out, new, i * chunk, axis=2)

  out = jax.lax.fori_loop(0, count, body, jnp.zeros((2, *all_ids.shape), jnp.float32))
  logps, lse = out[:, :, : ids.shape[1]]
  return logps, (hidden, matrix, index, ids, lse)


def _backward(chunk, axis, cap, residuals, d_logps):
  hidden, matrix, index, ids, lse = residuals
  if axis:
    d_logps = jax.lax.psum(d_logps, axis)  # every device's copy of the result counts
  all_index, all_ids, count = _chunks(index, ids, chunk)
  d_logps, lse = (jnp.pad(x, ((0, 0), (0, -ids.shape[1] % chunk))) for x in (d_logps, lse))
  rows = jnp.arange(ids.shape[0], dtype=jnp.int32)[:, None]

  def body(i, carry):
    d_hidden, d_matrix = carry
    index, ids = _chunk(all_index, i, chunk), _chunk(all_ids, i, chunk)
    x, logits = _logits(hidden, matrix, index, cap)
    scale = jnp.where(ids >= 0, _chunk(d_logps, i, chunk), 0.0)[..., None]
    own = own_ids(ids, logits.shape[-1], axis)
    hit = jnp.arange(logits.shape[-1], dtype=jnp.int32) == own[..., None]
    d_logits = (hit - jnp.exp(logits - _chunk(lse, i, chunk)[..., None])) * scale
    if cap is not None:
      d_logits *= 1 - (logits / cap) ** 2
    # An empty entry has no saved normaliser: its exponential may overflow.
    d_logits = jnp.where(ids[..., None] >= 0, d_logits, 0.0).astype(x.dtype)
    d_x = jnp.einsum(
      "buv,vd->bud", d_logits, matrix.astype(x.dtype), preferred_element_type=jnp.float32
    )
    # A sum over one axis, of all targets; see `linear.matmul`.
    d_logits, x = (y.reshape(-1, y.shape[-1]) for y in (d_logits, x))
    d_matrix += jnp.einsum("nv,nd->vd", d_logits, x, preferred_element_type=jnp.float32)
    return d_hidden.at[rows, index].add(d_x), d_matrix

  d_hidden, d_matrix = jax.lax.fori_loop(
    0, count, body, (jnp.zeros(hidden.shape, jnp.float32), jnp.zeros(matrix.shape, jnp.float32))
  )
  return d_hidden.astype(hidden.dtype), d_matrix.astype(matrix.dtype), None, None


target_log_probs.defvjp(_forward, _backward)
