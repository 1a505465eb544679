"""The mesh, and the rules that map logical axes of weights to mesh axes.

One mesh, axes `(host, data, fsdp, tensor)`: a host row per process, and inside it
the host's own devices, so that what is sharded over the other axes never crosses
hosts. Two small tables say how weights lie in training and in each inference mode.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
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
# Prompts over hosts; weights tensor-parallel inside a host, replicated over hosts.
_IN_HOST = ("tensor", "fsdp", "data")
# Every prompt on every host; weights tensor-parallel over the whole mesh.
_EVERYWHERE = (*_IN_HOST, "host")
INFERENCE_RULES = {
  mode: {"heads": axes, "kv_heads": axes, "ffn": axes, "vocab": axes}
  for mode, axes in (("host_data_parallel", _IN_HOST), ("global_mesh", _EVERYWHERE))
}
ROWS = P(("host", "data", "fsdp"))  # the batch axis of training rows


def train_rules(over_hosts: bool) -> dict[str, tuple[str, ...]]:
  """The rules of training: FSDP over the whole mesh, or inside each host alone."""
  if over_hosts:
    return TRAIN_RULES
  return {axis: tuple(a for a in axes if a != "host") for axis, axes in TRAIN_RULES.items()}


@runtime_checkable
class Device(Protocol):
  """What makes a place in the mesh of a `jax.Device`, of which jaxlib has no stubs."""

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
  """The mesh `(host, data, fsdp, tensor)` over all devices.

  Args:
    devices: defaults to all, ordered by process, so that a host is one mesh row.
    hosts: number of host rows; defaults to the number of processes.
    data, fsdp, tensor: a host's devices, as in `config.mesh`; fsdp 0 is the rest.

  Raises:
    UserError: the devices cannot be laid out so.
  """
  devices = cast(Sequence[Device], jax.devices()) if devices is None else devices
  ordered = sorted(devices, key=lambda d: (d.process_index, d.id))
  hosts = jax.process_count() if hosts is None else hosts
  if len(ordered) % hosts:
    counts = Counter(d.process_index for d in ordered)
    raise UserError(f"the hosts have different numbers of devices: {dict(counts)}")
  own = len(ordered) // hosts
  fsdp = fsdp or max(1, own // (data * tensor))
  if data * fsdp * tensor != own:
    raise UserError(
      f"--config.mesh.data={data} x --config.mesh.fsdp={fsdp} x --config.mesh.tensor={tensor} are "
      f"not the {own} devices of a host; choose factors of that number (fsdp=0 takes the rest)"
    )
  return Mesh(np.asarray(ordered).reshape(hosts, data, fsdp, tensor), AXES)


def param_specs(
  cfg: ModelConfig, mesh: Mesh, rules: Mapping[str, tuple[str, ...]], lora: Lora | None = None
) -> Params:
  """A PartitionSpec for every weight, from its logical axes.

  An axis takes the longest run of its mesh axes that divides its unit count: a
  head is never cut, and what cannot be divided is replicated.
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
  """NamedShardings of a tree of PartitionSpecs."""

  def on_mesh(spec: P) -> NamedSharding:
    return NamedSharding(mesh, spec)

  return jax.tree.map(on_mesh, specs, is_leaf=lambda s: isinstance(s, P))


def device_put(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
  """A host array as a global device array, shard by shard; nothing compiles.

  Every process holds the whole of `value` (small arrays), each places its part.
  """
  return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])
