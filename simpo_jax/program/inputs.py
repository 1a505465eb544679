"""What a launch takes beside the state, batch, requests and ledger, and how they are sharded."""

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


def input_shardings(cfg: ProgramConfig) -> tuple[Batch, Requests, NamedSharding]:
  """NamedShardings of (batch, requests, ledger)."""
  rows = P(None, *ROWS)
  batch = Batch(*[rows] * (len(Batch._fields) - 1), num_micro=P())
  group = P("host") if cfg.generate.groups > 1 else P()
  asked = jax.tree.map(lambda _: group, _no_requests(cfg).each)
  requests = Requests(asked, stops=P(), seed=P())
  return named(cfg.mesh, (batch, requests, P("host")))


def abstract_inputs(cfg: ProgramConfig):
  """Shapes, dtypes and shardings of (batch, requests, ledger)."""
  ledger = np.zeros((cfg.mesh.shape["host"], len(FIELDS)), np.int32)
  values = (empty_batch(cfg.batch), _no_requests(cfg), ledger)
  return jax.tree.map(with_sharding, values, input_shardings(cfg))


def put_inputs(values, shardings):
  """Places a tree of numpy arrays as `input_shardings` says."""
  return jax.tree.map(device_put, values, shardings)


def local_rows(cfg: ProgramConfig) -> range:
  """The rows of a micro-batch that lie on this process's devices."""
  sharding = NamedSharding(cfg.mesh, ROWS)
  rows = (cfg.batch.rows,)
  spans = [i[0].indices(*rows) for i in sharding.addressable_devices_indices_map(rows).values()]
  return range(min(start for start, *_ in spans), max(stop for _, stop, _ in spans))


def put_batch(cfg: ProgramConfig, batch: Batch, shardings: Batch) -> Batch:
  """Places a batch of which this process holds its `local_rows` alone."""
  local = local_rows(cfg)

  def put(value, sharding):
    if not value.ndim:
      return device_put(value, sharding)

    def part(index):
      start, stop, _ = index[1].indices(cfg.batch.rows)
      return value[:, start - local.start : stop - local.start]

    shape = (value.shape[0], cfg.batch.rows, *value.shape[2:])
    return jax.make_array_from_callback(shape, sharding, part)

  return jax.tree.map(put, batch, shardings)


def _no_requests(cfg: ProgramConfig) -> Requests:
  return empty_requests(cfg.generate, cfg.step.model.vocab_size)
