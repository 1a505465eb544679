"""The type of what a Pallas kernel is given in place of arrays."""

from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np


@runtime_checkable
class Ref(Protocol):
  """A ref to memory, as far as kernels use it; jax.Ref leaves the types of its values open."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def dtype(self) -> np.dtype: ...

  @property
  def at(self) -> Any:
    """Its views, by index: each may become a source or target of a copy, load or store."""

  def __getitem__(self, index: Any, /) -> jax.Array: ...

  def __setitem__(self, index: Any, value: jax.Array | int, /) -> None: ...
