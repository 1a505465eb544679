"""Pure device functions give the same with jit and without, on device and host values."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from simpo_jax.generate import kv_pages, sampling

N, V = 5, 300
VARIANTS = dict(with_jit=True, without_jit=True, with_device=True, without_device=True)


def settings(**changes):
  values = dict(temperature=1.0, top_k=40, top_p=0.9, min_p=0.0, repetition_penalty=1.3)
  kinds = dict(top_k=np.int32)
  return sampling.Sampling(
    **{k: np.full(N, v, kinds.get(k, np.float32)) for k, v in {**values, **changes}.items()}
  )


class Sampling(chex.TestCase):
  """Shapes and dtypes as the docstrings give them, and values by hand."""

  def setUp(self):
    super().setUp()
    rng = np.random.default_rng(0)
    self.logits = rng.normal(size=(N, V)).astype(np.float32)
    self.seen = rng.random((N, V)) < 0.1
    self.u = rng.random(N).astype(np.float32)

  @chex.variants(**VARIANTS)
  def test_choose(self):
    choose = self.variant(sampling.choose)
    tokens, logprobs = choose(self.logits, settings(), self.u, self.seen)
    chex.assert_shape([tokens, logprobs], (N,))
    chex.assert_type([tokens, logprobs], [jnp.int32, jnp.float32])
    whole = jax.nn.log_softmax(self.logits)
    expected = np.take_along_axis(np.asarray(whole), np.asarray(tokens)[:, None], axis=1)[:, 0]
    chex.assert_trees_all_close(np.asarray(logprobs), expected, atol=1e-5)

  @chex.variants(**VARIANTS)
  def test_greedy(self):
    greedy = self.variant(sampling.choose)
    tokens, _ = greedy(self.logits, settings(temperature=0.0), self.u)
    chex.assert_trees_all_equal(np.asarray(tokens), self.logits.argmax(-1).astype(np.int32))

  @chex.variants(**VARIANTS)
  def test_penalise(self):
    out = self.variant(sampling.penalise)(self.logits, self.seen, np.full(N, 2.0, np.float32))
    halved = np.where(self.logits > 0, self.logits / 2, self.logits * 2)
    chex.assert_trees_all_equal(np.asarray(out), np.where(self.seen, halved, self.logits))

  @chex.variants(with_jit=True, without_jit=True)
  def test_uniforms(self):
    draw = self.variant(sampling.uniforms)
    key, index = jax.random.key(3), jnp.arange(N, dtype=jnp.int32)
    first, again = draw(key, index, index, index), draw(key, index[::-1], index[::-1], index[::-1])
    chex.assert_shape(first, (N,))
    chex.assert_type(first, jnp.float32)
    chex.assert_trees_all_equal(first, again[::-1])  # of a request alone, wherever it stands


class Pages(chex.TestCase):
  """See kv_pages_test for what they promise; here, that jit changes nothing."""

  @chex.variants(with_jit=True, without_jit=True, with_device=True)
  def test_allocate_share_release(self):
    allocate, share, release = map(
      self.variant, (kv_pages.allocate, kv_pages.share, kv_pages.release)
    )
    none = np.zeros(3, np.int32)
    pages = allocate(kv_pages.init_pages(8, 3, 4), none, np.asarray([3, 0, 2], np.int32))
    pages = share(pages, np.asarray([0, 0, 2], np.int32), np.asarray([0, 2, 0], np.int32))
    chex.assert_shape([pages.refs, pages.table], [(8,), (3, 4)])
    chex.assert_type([pages.refs, pages.table], jnp.int32)
    chex.assert_trees_all_equal(
      tuple(map(np.asarray, pages)),
      (
        np.asarray([2, 2, 1, 1, 1, 0, 0, 0], np.int32),
        np.asarray([[0, 1, 2, 8], [0, 1, 8, 8], [3, 4, 8, 8]], np.int32),
      ),
    )
    empty = release(pages, np.ones(3, bool))
    chex.assert_trees_all_equal(
      tuple(map(np.asarray, empty)), tuple(map(np.asarray, kv_pages.init_pages(8, 3, 4)))
    )
