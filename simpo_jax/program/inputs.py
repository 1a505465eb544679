"""The inputs of a launch besides the state (batch, requests, ledger), and their shardings."""

from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from simpo_jax.generate.requests import empty_requests
from simpo_jax.generate.types import Requests
from simpo_jax.models.sharding import ROWS, device_put, named
from simpo_jax.program.config import ProgramConfig
from simpo_jax.program.ledger import FIELDS
from simpo_jax.program.state import with_sharding
from simpo_jax.train.batch import Batch, empty_batch

_Values = TypeVar("_Values")


def input_shardings(cfg: ProgramConfig) -> tuple[Batch, Requests, NamedSharding]:
  """Returns NamedShardings of (batch, requests, ledger)."""
  group = P("host") if cfg.generate.groups > 1 else P()

  def of_group(_: object) -> P:
    return group

  def of_all(_: object) -> P:
    return P()

  batch = Batch._make([P(None, *ROWS)] * len(Batch._fields))._replace(num_micro=P())
  empty = _no_requests(cfg)
  each = jax.tree.map(of_group, empty.each)
  requests = jax.tree.map(of_all, empty)._replace(each=each)
  return named(cfg.mesh, (batch, requests, P("host")))


def abstract_inputs(cfg: ProgramConfig) -> tuple[Batch, Requests, jax.ShapeDtypeStruct]:
  """Returns shapes, dtypes and shardings of (batch, requests, ledger)."""
  ledger = np.zeros((cfg.mesh.shape["host"], len(FIELDS)), np.int32)
  values = (empty_batch(cfg.batch), _no_requests(cfg), ledger)
  return jax.tree.map(with_sharding, values, input_shardings(cfg))


def put_inputs(values: _Values, shardings: Any) -> _Values:
  """Puts a tree of numpy arrays on the devices, with shardings from `input_shardings`."""
  return jax.tree.map(device_put, values, shardings)


def local_rows(cfg: ProgramConfig) -> range:
  """Returns the rows of a micro-batch that are stored on this process's devices."""
  sharding = NamedSharding(cfg.mesh, ROWS)
  rows = (cfg.batch.rows,)
  slices = sharding.addressable_devices_indices_map(rows).values()
  spans = [index[0].indices(*rows) for index in slices if index is not None]
  return range(min(start for start, *_ in spans), max(stop for _, stop, _ in spans))


def put_batch(cfg: ProgramConfig, batch: Batch, shardings: Batch) -> Batch:
  """Puts a batch on the devices, given only this process's `local_rows` of it."""
  local = local_rows(cfg)

  def put(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
    if not value.ndim:
      return device_put(value, sharding)

    def part(index: tuple[slice, ...]) -> np.ndarray:
      start, stop, _ = index[1].indices(cfg.batch.rows)
      return value[:, start - local.start : stop - local.start]

    shape = (value.shape[0], cfg.batch.rows, *value.shape[2:])
    return jax.make_array_from_callback(
      shape,
      sharding,
      part,  # pyright: ignore[reportArgumentType]  # its index is never None
    )

  return jax.tree.map(put, batch, shardings)


def _no_requests(cfg: ProgramConfig) -> Requests:
  return empty_requests(cfg.generate, cfg.step.model.vocab_size)
