"""The mesh, and the rules that map logical axes of weights to mesh axes.

The mesh has the axes `(host, data, fsdp, tensor)`. Each index along `host` contains the
devices of one process, so that sharding over the other axes never communicates across
hosts. Two small tables define how weights are sharded in training and in each inference mode.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from simpo_jax.errors import UserError
from simpo_jax.models.config import ModelConfig
from simpo_jax.models.llama import Params, Tensor
from simpo_jax.models.lora import Lora, all_tensors

AXES = ("host", "data", "fsdp", "tensor")
TRAIN_RULES = {
  "embed": ("fsdp", "host"),
  "heads": ("tensor",),
  "kv_heads": ("tensor",),
  "ffn": ("tensor",),
  "vocab": ("tensor",),
}
# Prompts sharded over hosts; weights tensor-parallel inside a host, replicated over hosts.
_IN_HOST = ("tensor", "fsdp", "data")
# Every prompt on every host; weights tensor-parallel over the whole mesh.
_EVERYWHERE = (*_IN_HOST, "host")
INFERENCE_RULES = {
  mode: {"heads": axes, "kv_heads": axes, "ffn": axes, "vocab": axes}
  for mode, axes in (("host_data_parallel", _IN_HOST), ("global_mesh", _EVERYWHERE))
}
ROWS = P(("host", "data", "fsdp"))  # sharding of the batch axis in training


def train_rules(over_hosts: bool) -> dict[str, tuple[str, ...]]:
  """Returns the rules of training: FSDP over all hosts, or only inside each host."""
  if over_hosts:
    return TRAIN_RULES
  return {axis: tuple(a for a in axes if a != "host") for axis, axes in TRAIN_RULES.items()}


@runtime_checkable
class Device(Protocol):
  """The attributes of `jax.Device` used here; jaxlib has no type stubs for it."""

  id: int
  process_index: int


def make_mesh(
  devices: Sequence[Device] | None = None,
  hosts: int | None = None,
  *,
  data: int = 1,
  fsdp: int = 0,
  tensor: int = 1,
) -> Mesh:
  """Returns the mesh `(host, data, fsdp, tensor)` over all devices.

  Args:
    devices: defaults to all devices; they are sorted by process, then id.
    hosts: size of the axis `host`; defaults to the number of processes.
    data, fsdp, tensor: axis sizes per host, as in `config.mesh`; fsdp 0 is inferred.

  Raises:
    UserError: the devices do not form such a mesh.
  """
  devices = cast(Sequence[Device], jax.devices()) if devices is None else devices
  ordered = sorted(devices, key=lambda d: (d.process_index, d.id))
  hosts = jax.process_count() if hosts is None else hosts
  if len(ordered) % hosts:
    counts = Counter(d.process_index for d in ordered)
    raise UserError(f"the hosts have different numbers of devices: {dict(counts)}")
  per_host = len(ordered) // hosts
  fsdp = fsdp or max(1, per_host // (data * tensor))
  if data * fsdp * tensor != per_host:
    raise UserError(
      f"--config.mesh.data={data} x --config.mesh.fsdp={fsdp} x --config.mesh.tensor={tensor} are "
      f"not the {per_host} devices of a host; choose factors of that number (fsdp=0 takes the rest)"
    )
  return Mesh(np.asarray(ordered).reshape(hosts, data, fsdp, tensor), AXES)


def param_specs(
  cfg: ModelConfig,
  mesh: Mesh | AbstractMesh,
  rules: Mapping[str, tuple[str, ...]],
  lora: Lora | None = None,
) -> Params:
  """Returns a PartitionSpec for every weight, from its logical axes.

  An axis is sharded over the longest prefix of its mesh axes that evenly divides its
  number of units: heads are never split, and an axis that cannot be divided is replicated.
  """
  units = {
    "embed": cfg.hidden_size,
    "heads": cfg.num_attention_heads,
    "kv_heads": cfg.num_key_value_heads,
    "ffn": cfg.intermediate_size,
    "vocab": cfg.vocab_size,
  }

  def mesh_axes(axis: str) -> tuple[str, ...] | None:
    axes = rules.get(axis, ())
    while axes and units[axis] % math.prod(mesh.shape[a] for a in axes):
      axes = axes[:-1]
    return axes or None

  def spec(tensor: Tensor) -> P:
    return P(*(mesh_axes(axis) for axis in tensor.axes))

  return jax.tree.map(spec, all_tensors(cfg, lora))


def named(mesh: Mesh, specs: Any) -> Any:
  """Returns NamedShardings for a tree of PartitionSpecs."""

  def on_mesh(spec: P) -> NamedSharding:
    return NamedSharding(mesh, spec)

  return jax.tree.map(on_mesh, specs, is_leaf=lambda s: isinstance(s, P))


def device_put(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
  """Returns a host array as a global device array, without compiling anything.

  Every process must hold the full `value`; each puts the shards of its local devices.
  """
  return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
