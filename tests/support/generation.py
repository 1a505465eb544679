"""The generation engine by itself, on one device, for tests."""

import copy

import jax
import jax.numpy as jnp
import numpy as np

from simpo_jax.data.types import Prompt
from simpo_jax.generate.assignment import round_robin
from simpo_jax.generate.engine import generate_group
from simpo_jax.generate.on_mesh import paged_attend
from simpo_jax.generate.requests import make_requests, pack_requests
from simpo_jax.generate.sampling.settings import Switches
from simpo_jax.generate.sizing import shape_for
from simpo_jax.generate.state import Engine
from simpo_jax.generate.stop_automaton import stop_automaton
from simpo_jax.generate.suppression import make_suppression
from simpo_jax.generate.types import NONFINITE, RUNNING
from simpo_jax.models import llama
from simpo_jax.models.weights import OpenModel, load_params
from simpo_jax.settings import GenerateSettings


def settings(**changes):
  """Those of a small generation."""
  return GenerateSettings(**{"page_size": 8, "prefill_chunk": 8, "max_new_tokens": 12, **changes})


def random_prompts(lengths, vocab, seed=0):
  rng = np.random.default_rng(seed)
  return [
    Prompt(i, str(i), rng.integers(0, vocab, n).astype(np.int32)) for i, n in enumerate(lengths)
  ]


def random_weights(cfg):
  """Ten times the usual size: sequences that do not settle into a loop."""
  sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  shardings = jax.tree.map(lambda _: sharding, llama.tensors(cfg))
  return jax.tree.map(
    lambda x: x * 10 if x.ndim > 1 else x,
    load_params(OpenModel("test", cfg, None, None), shardings, "float32", 1),
  )


class Generation:
  """One compiled generation of some prompts.

  Attributes:
    requests, shape, packed: what is asked for.
    run: the jitted function of (params, packed requests) to `Generated`.
  """

  def __init__(self, cfg, prompts, config, stops=None, end_ids=(), **shape):
    self.config = config
    self.stops = stop_automaton(cfg.vocab_size) if stops is None else stops
    self.suppression = make_suppression(config, end_ids, cfg.vocab_size)
    self.requests = make_requests(prompts, config)
    assignments = round_robin(self.requests, 1)
    self.shape = shape_for(self.requests, assignments, config, 1, stop_states=len(self.stops))
    # A request's own settings may come later (see `of`).
    self.shape = self.shape._replace(**{"sampling": Switches(True, cfg.vocab_size, True), **shape})
    self.packed = self._pack()

    def run(params, requests):
      engine = Engine(
        llama.unstack(params, cfg, jnp.float32),
        cfg,
        self.shape,
        jnp.float32,
        paged_attend(cfg, self.shape),
      )
      one = requests._replace(each=jax.tree.map(lambda x: x[0], requests.each))
      return generate_group(engine, one)

    self.run = jax.jit(run)

  def of(self, *prompts):
    """The same compiled program for other prompts, which must be no more and no longer."""
    other = copy.copy(self)
    other.requests = make_requests(list(prompts), self.config)
    other.packed = other._pack()
    return other

  def _pack(self):
    assignments = round_robin(self.requests, 1)
    return pack_requests(
      self.requests, assignments, self.shape, self.stops, self.config.seed, self.suppression
    )

  def __call__(self, params):
    """{(prompt index, sample): (tokens, finish, log-probabilities)}, checked for wholeness."""
    out = jax.tree.map(np.asarray, self.run(params, self.packed))
    answers = {}
    for request, place in zip(self.requests, round_robin(self.requests, 1), strict=True):
      n = out.count[place.index]
      tokens, logprobs = out.tokens[place.index], out.logprobs[place.index]
      assert (out.finish[place.index] != NONFINITE) <= n <= request.budget
      assert out.finish[place.index] != RUNNING
      assert (tokens[:n] >= 0).all() and (tokens[n:] == -1).all() and (logprobs[n:] == 0).all()
      np.testing.assert_allclose(out.logprob[place.index], logprobs.sum(), rtol=1e-4)
      key = request.prompt.index, request.sample
      answers[key] = tokens[:n].tolist(), int(out.finish[place.index]), logprobs[:n]
    return answers


def tokens_of(answers):
  return {key: answer[0] for key, answer in answers.items()}


def logprobs_of(answers):
  return {key: answer[2] for key, answer in answers.items()}
