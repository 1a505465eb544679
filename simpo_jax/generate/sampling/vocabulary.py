"""The vocabulary in parts and blocks: sums of fixed extent, whatever the mesh."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float32, Int32

from simpo_jax.generate.sampling.settings import Across

PARTS = 32  # at most; the vocabulary's shards are whole parts on meshes of up to 32 devices
BLOCK = 128  # entries of a block, or up to twice as many

View = Float32[Array, "B parts blocks block"]


class Place(NamedTuple):
  """A place in a `View`, for each row."""

  part: Int32[Array, " B"]
  block: Int32[Array, " B"]
  entry: Int32[Array, " B"]


def view_of(x: Float32[Array, "B V"]) -> View:
  """Returns x in parts of equal size, each in blocks; parts are filled up with -inf.

  The sizes depend on V alone. Parts carry the sharding of the vocabulary.
  """
  B, V = x.shape
  parts = math.gcd(V, PARTS)
  size = V // parts
  # Filling up costs a CPU more than a pass over the logits.
  block = next((b for b in range(BLOCK, 2 * BLOCK) if size % b == 0), BLOCK)
  x, padding = x.reshape(B, parts, size), -size % block
  if padding:
    x = jnp.pad(x, ((0, 0), (0, 0), (0, padding)), constant_values=-jnp.inf)
  return x.reshape(B, parts, -1, block)


def tokens_at(place: Place, view: View, vocab_size: int) -> Int32[Array, " B"]:
  """Returns the token ids of places in a view."""
  parts, block = view.shape[1], view.shape[3]
  token = place.part * (vocab_size // parts) + place.block * block + place.entry
  return token.astype(jnp.int32)


def total(x: View, across: Across) -> Float32[Array, " B"]:
  """Returns each row's sum, the same bits on every mesh."""
  return jnp.sum(across.replicate(jnp.sum(x, axis=(2, 3))), axis=1)
