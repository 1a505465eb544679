"""TPU slices that need not be there, as libtpu describes them."""

import os

from simpo_jax.errors import UserError

TOPOLOGIES = "v5p:2x2x4, v5e:4x4, v6e:4x4, v4:2x2x4"


def topology_devices(name: str) -> list:
  """The devices of a TPU slice such as "v5p:2x2x4", described by libtpu; no TPU is needed.

  Raises:
    UserError: libtpu is not installed, or knows no such slice.
  """
  try:
    import libtpu  # noqa: F401
  except ImportError:
    raise UserError(
      f"--topology={name} needs the TPU compiler, libtpu: pip install -e '.[tpu]'"
    ) from None
  # Chatter about the TPU host that this machine is not, and a lock against a second process.
  for variable, value in (
    ("TPU_SKIP_MDS_QUERY", "1"),
    ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ("TPU_WORKER_HOSTNAMES", "localhost"),
    ("TPU_ACCELERATOR_TYPE", "v5p-8"),
    ("TPU_STDERR_LOG_LEVEL", "3"),
    ("TPU_MIN_LOG_LEVEL", "3"),
  ):
    os.environ.setdefault(variable, value)
  from jax.experimental import topologies

  kind, _, sides = name.partition(":")
  options = {}
  if kind == "v4":
    options["chip_config_name"] = "megacore"  # one device a chip, as JAX has it on a v4
  if sides and set(sides.split("x")) == {"1"}:
    options["chips_per_host_bounds"] = (1, 1, 1)
  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
  except Exception as e:  # libtpu's own errors, of several types
    if kind.lower().startswith(("gpu", "cuda", "nvidia", "h100", "a100", "h200", "b200")):
      raise UserError(
        f"--topology={name}: JAX can describe TPU slices only; to plan for GPUs, run plan without "
        "--topology on a machine that has one (pip install -e '.[cuda13]')"
      ) from e
    raise UserError(
      f"--topology={name}: libtpu knows no such slice; write GENERATION:SIDES in chips, such as "
      f"{TOPOLOGIES} ({str(e).split(': ', 1)[-1].splitlines()[0]})"
    ) from e
