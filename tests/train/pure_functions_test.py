"""SimPO's loss by equation 6, and target log-probabilities next to all of them; jit or not."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from simpo_jax.settings import SimPOSettings
from simpo_jax.train.loss import simpo_loss, target_log_probs

# Without `without_device`, which passes numpy: these functions take arrays of the devices.
VARIANTS = dict(with_jit=True, without_jit=True, with_device=True)
variants: Any = chex.variants  # whose currying loses its types


class Loss(chex.TestCase):
  variant: Callable[..., Any]  # set by `chex.variants`

  @variants(**VARIANTS)
  def test_simpo_loss(self):
    cfg = SimPOSettings(beta=2.0, gamma_beta_ratio=0.25)
    chosen, rejected = jnp.float32([-0.5, -1.0]), jnp.float32([-1.0, -0.25])
    out = self.variant(lambda a, b: simpo_loss(a, b, cfg))(chosen, rejected)
    chex.assert_type(out, jnp.float32)
    margin = 2.0 * (chosen - rejected) - 0.5
    chex.assert_trees_all_close(out, jnp.log1p(jnp.exp(-margin)), rtol=1e-6)

  @variants(**VARIANTS)
  def test_target_log_probs(self):
    rng = np.random.default_rng(0)
    B, S, D, U, V = 2, 16, 8, 12, 50
    hidden = jnp.asarray(rng.normal(size=(B, S, D)), jnp.float32)
    matrix = jnp.asarray(rng.normal(size=(V, D)), jnp.float32)
    index = jnp.asarray(rng.integers(S, size=(B, U)), jnp.int32)
    ids = jnp.asarray(rng.integers(V, size=(B, U)), jnp.int32)
    out = self.variant(lambda *a: target_log_probs(*a, chunk=4))(hidden, matrix, index, ids)
    every = jax.nn.log_softmax(jnp.einsum("bsd,vd->bsv", hidden, matrix))
    chex.assert_trees_all_close(out, every[jnp.arange(B)[:, None], index, ids], atol=1e-5)
