"""Sampling settings: of each request, of a program and of a launch."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float32, Int32


class Sampling(NamedTuple):
  """Sampling settings of each request, or of the request in each row of a decode step."""

  temperature: Float32[Array, "*rows"]  # logits are divided by it; 0 is greedy
  top_k: Int32[Array, "*rows"]  # 0 is off
  top_p: Float32[Array, "*rows"]  # 1 is off
  min_p: Float32[Array, "*rows"]  # relative to the most likely token's probability; 0 is off
  repetition_penalty: Float32[Array, "*rows"]  # 1 is off


class Switches(NamedTuple):
  """What some request of a program asks for; what none asks for is not in the program.

  The other settings cost nothing.
  """

  sampled: bool  # a temperature
  top_k: int  # the most tokens that a request's top_k keeps; 0 if none has one
  top_p: bool


class Launch(NamedTuple):
  """What some request of a launch asks for, in any group; the rest is not executed."""

  sampled: Bool[Array, ""]  # a temperature
  truncated: Bool[Array, ""]  # top-k or top-p


class Across(NamedTuple):
  """How a generation is divided over devices."""

  vocab_shards: int = 1
  # Makes an array that is sharded over the vocabulary whole on every device.
  replicate: Callable[[Array], Array] = lambda x: x
  # Maximum over all groups, which must take the same branches.
  max_over_groups: Callable[[Array], Array] = lambda x: x


ONE_DEVICE = Across()


def switches_for(settings: Iterable[Sampling]) -> Switches:
  """Returns what requests ask for, given each one's settings as Python numbers."""
  hot = [s for s in settings if s.temperature > 0]
  return Switches(
    sampled=bool(hot),
    top_k=max((int(s.top_k) for s in hot), default=0),
    top_p=any(s.top_p < 1.0 for s in hot),
  )


def launch_of(sampling: Sampling, across: Across) -> Launch:
  """Returns what the requests of a launch ask for.

  Args:
    sampling: settings of all requests of the local group.
  """
  hot = sampling.temperature > 0
  truncated = hot & ((sampling.top_k > 0) | (sampling.top_p < 1.0))
  asked = jnp.stack([jnp.any(hot), jnp.any(truncated)]).astype(jnp.int32)
  sampled, truncated = across.max_over_groups(asked) > 0
  return Launch(sampled, truncated)
