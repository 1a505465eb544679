"""The type of the refs that a Pallas kernel gets in place of arrays."""

from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np


@runtime_checkable
class Ref(Protocol):
  """The interface of a ref that the kernels use; jax.Ref does not declare the type of values."""

  @property
  def shape(self) -> tuple[int, ...]: ...

  @property
  def dtype(self) -> np.dtype: ...

  @property
  def at(self) -> Any:
    """Indexing gives a view of the ref, for copies, loads and stores."""

  def __getitem__(self, index: Any, /) -> jax.Array: ...

  def __setitem__(self, index: Any, value: jax.Array | int, /) -> None: ...
