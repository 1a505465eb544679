"""SimPO: the loss on average response log-probabilities (arXiv:2405.14734)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class SimPOConfig(NamedTuple):
  """The names and defaults of princeton-nlp/SimPO; gamma = beta * gamma_beta_ratio."""

  beta: float = 2.0
  gamma_beta_ratio: float = 0.25
  loss_type: str = "sigmoid"
  label_smoothing: float = 0.0
  sft_weight: float = 0.0


def simpo_loss(chosen: jax.Array, rejected: jax.Array, cfg: SimPOConfig) -> jax.Array:
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
  return (-(1.0 - cfg.label_smoothing) * jax.nn.log_sigmoid(margin)
          - cfg.label_smoothing * jax.nn.log_sigmoid(-margin))


def target_log_probs(hidden: jax.Array, matrix: jax.Array, index: jax.Array, ids: jax.Array,
                     chunk: int = 256) -> jax.Array:
  """Log-probabilities of the target tokens alone, a chunk of logits at a time.

  A chunk without targets is not computed, and each chunk's logits are recomputed
  in the backward pass: at most `[B, chunk, V]` logits ever exist.

  Args:
    hidden: `[B, S, D]`, final hidden states.
    matrix: `[V, D]`, the output embedding.
    index: int32 `[B, U]`, where in the row each target is predicted from.
    ids: int32 `[B, U]`, the target token, or -1 for an empty entry; targets come first.
    chunk: targets per block.

  Returns:
    float32 `[B, U]`, 0 for empty entries.
  """
  B, U = ids.shape
  chunk = min(chunk, U)
  padded = -(-U // chunk) * chunk
  index = jnp.pad(index, ((0, 0), (0, padded - U)))
  ids = jnp.pad(ids, ((0, 0), (0, padded - U)), constant_values=-1)

  @jax.checkpoint
  def score(hidden, matrix, index, ids):
    x = jnp.take_along_axis(hidden, index[..., None], axis=1)
    logits = jnp.einsum("bud,vd->buv", x, matrix.astype(x.dtype),
                        preferred_element_type=jnp.float32)
    target = jnp.take_along_axis(logits, jnp.maximum(ids, 0)[..., None], axis=-1)[..., 0]
    return jnp.where(ids >= 0, target - jax.nn.logsumexp(logits, axis=-1), 0.0)

  def body(carry, args):
    index, ids = args
    logps = jax.lax.cond(jnp.any(ids >= 0), score,
                         lambda hidden, matrix, index, ids: jnp.zeros(ids.shape, jnp.float32),
                         hidden, matrix, index, ids)
    return carry, logps

  def split(x):
    return jnp.moveaxis(x.reshape(B, padded // chunk, chunk), 1, 0)

  _, out = jax.lax.scan(body, None, (split(index), split(ids)))
  return jnp.moveaxis(out, 0, 1).reshape(B, padded)[:, :U]
