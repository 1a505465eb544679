"""Pure device functions give the same with jit and without, wherever their arrays are."""

import functools
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from simpo_jax.generate import kv_pages
from simpo_jax.generate.sampling import choose, draw, settings, truncation, vocabulary

N, V = 5, 300
# Without `without_device`, which passes numpy: these functions take arrays of the devices.
VARIANTS = dict(with_jit=True, without_jit=True, with_device=True)
variants: Any = chex.variants  # whose currying loses its types


SWITCHES = settings.Switches(sampled=True, top_k=40, top_p=True)


def sampling(temperature=1.0):
  return settings.Sampling(
    temperature=jnp.full(N, temperature, jnp.float32),
    top_k=jnp.full(N, 40, jnp.int32),
    top_p=jnp.full(N, 0.9, jnp.float32),
    min_p=jnp.zeros(N, jnp.float32),
    repetition_penalty=jnp.full(N, 1.3, jnp.float32),
  )


class Sampling(chex.TestCase):
  """Shapes and dtypes as the annotations give them, and values by hand."""

  variant: Callable[..., Any]  # set by `chex.variants`

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.logits = jnp.asarray(rng.normal(size=(N, V)), jnp.float32)
    self.seen = jnp.asarray(rng.random((N, V)) < 0.1)
    self.u = jnp.asarray(rng.random((N, 3)), jnp.float32)

  @variants(**VARIANTS)
  def test_choose(self):
    hot = self.variant(functools.partial(choose.choose, switches=SWITCHES))
    tokens, logprobs = hot(self.logits, sampling(), self.u, seen=self.seen)
    chex.assert_shape([tokens, logprobs], (N,))
    chex.assert_type([tokens, logprobs], [jnp.int32, jnp.float32])
    whole = jax.nn.log_softmax(self.logits)
    expected = jnp.take_along_axis(whole, tokens[:, None], axis=1)[:, 0]
    chex.assert_trees_all_close(logprobs, expected, atol=1e-5)

  @variants(**VARIANTS)
  def test_greedy(self):
    greedy = self.variant(functools.partial(choose.choose, switches=SWITCHES))
    tokens, _ = greedy(self.logits, sampling(temperature=0.0), self.u)
    chex.assert_type(tokens, jnp.int32)
    chex.assert_trees_all_equal(tokens, self.logits.argmax(-1))

  @variants(**VARIANTS)
  def test_penalize(self):
    out = self.variant(choose.penalize)(self.logits, self.seen, jnp.full(N, 2.0))
    chex.assert_shape(out, (N, V))
    chex.assert_type(out, jnp.float32)
    halved = jnp.where(self.logits > 0, self.logits / 2, self.logits * 2)
    chex.assert_trees_all_equal(out, jnp.where(self.seen, halved, self.logits))

  @variants(**VARIANTS)
  def test_cut_and_draw(self):
    def place_of(logits, u):
      view, peak, s = vocabulary.view_of(logits), jnp.max(logits, axis=1), sampling()
      cut = truncation.cut(view, peak, s, SWITCHES, settings.ONE_DEVICE)
      place = draw.draw(view, peak, s.temperature, cut, u, settings.ONE_DEVICE)
      return cut, vocabulary.tokens_at(place, view, V)

    cut, tokens = self.variant(place_of)(self.logits, self.u)
    chex.assert_shape([cut, tokens], (N,))
    chex.assert_type([cut, tokens], [jnp.float32, jnp.int32])
    drawn = jnp.take_along_axis(self.logits, tokens[:, None], axis=1)[:, 0]
    chex.assert_trees_all_equal(drawn >= cut, jnp.ones(N, bool))

  @variants(with_jit=True, without_jit=True)
  def test_uniforms(self):
    draw = self.variant(choose.uniforms)
    key, index = jax.random.key(3), jnp.arange(N, dtype=jnp.int32)
    first, again = draw(key, index, index, index), draw(key, index[::-1], index[::-1], index[::-1])
    chex.assert_shape(first, (N, 3))
    chex.assert_type(first, jnp.float32)
    chex.assert_trees_all_equal(first, again[::-1])  # of a request alone, wherever it stands


class Pages(chex.TestCase):
  """See kv_pages_test for what they promise; here, that jit changes nothing."""

  variant: Callable[..., Any]  # set by `chex.variants`

  @variants(**VARIANTS)
  def test_allocate_share_release(self):
    allocate, share, release = map(
      self.variant, (kv_pages.allocate, kv_pages.share, kv_pages.release)
    )
    none = jnp.zeros(3, jnp.int32)
    pages = allocate(kv_pages.init_pages(8, 3, 4), none, jnp.asarray([3, 0, 2]))
    pages = share(pages, jnp.asarray([0, 0, 2]), jnp.asarray([0, 2, 0]))
    chex.assert_shape([pages.refs, pages.table], [(8,), (3, 4)])
    chex.assert_type([pages.refs, pages.table], jnp.int32)
    expected = kv_pages.Pages(
      refs=jnp.asarray([2, 2, 1, 1, 1, 0, 0, 0]),
      table=jnp.asarray([[0, 1, 2, 8], [0, 1, 8, 8], [3, 4, 8, 8]]),
    )
    chex.assert_trees_all_equal(pages, expected)
    empty = release(pages, jnp.ones(3, bool))
    chex.assert_trees_all_equal(empty, kv_pages.init_pages(8, 3, 4))
