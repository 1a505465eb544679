"""JAX's control flow with precise types."""

from collections.abc import Callable
from typing import TypeVar, cast

import jax

State = TypeVar("State")


def fori_loop(
  lower: int | jax.Array,
  upper: int | jax.Array,
  body: Callable[[jax.Array, State], State],
  init: State,
) -> State:
  """`jax.lax.fori_loop`, typed so that the result has the type of `init`."""
  return cast(State, jax.lax.fori_loop(lower, upper, body, init))


def cond(
  predicate: jax.Array, on_true: Callable[[], State], on_false: Callable[[], State]
) -> State:
  """`jax.lax.cond` of branches without operands, typed so that the result has their type."""
  return cast(State, jax.lax.cond(predicate, on_true, on_false))
