"""Paged attention on CPU: the plain XLA form, over pages that its matrix products can read."""

import functools

from simpo_jax.kernels.paged_attention import xla
from simpo_jax.kernels.paged_attention.layouts import HEAD_MAJOR

STEP_BYTES = 2**18  # a step's keys and values stay in the cache of a core

attend = functools.partial(xla.attend, layout=HEAD_MAJOR, step_bytes=STEP_BYTES)


def unsupported_reason(**_: object) -> None:
  """Returns None: every shape is supported."""
