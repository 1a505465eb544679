"""Devices of TPU slices that need not be attached, as described by libtpu."""

import math
import os
import re

from simpo_jax import libtpu as hidden
from simpo_jax.distributed.chips import CHIPS
from simpo_jax.errors import UserError

TOPOLOGIES = "v5p:2x2x4, v5e:4x4, v6e:4x4, v4:2x2x4"
_MOST_CHIPS = 9216  # the largest pod, a TPU7x's; describing it takes libtpu seconds
_GPUS = ("gpu", "cuda", "nvidia", "h100", "a100", "h200", "b200")


def topology_devices(name: str) -> list:
  """Returns device descriptions of a TPU slice such as "v5p:2x2x4"; no TPU is needed.

  Raises:
    UserError: `name` is malformed, libtpu is not installed, or it does not support the slice.
  """
  kind, sides = _parse(name)
  hidden.show()
  try:
    import libtpu  # noqa: F401
  except ImportError:
    raise UserError(
      f"--topology={name} needs the TPU compiler, libtpu: pip install -e '.[tpu]'"
    ) from None
  # Avoids libtpu's queries and warnings about the missing TPU host, and its process lock.
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

  options = {}
  if kind == "v4":
    options["chip_config_name"] = "megacore"  # one JAX device per chip, as on a real v4
  if set(sides) == {1}:
    options["chips_per_host_bounds"] = (1, 1, 1)
  try:
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
  except Exception as e:  # libtpu raises errors of several types
    raise UserError(
      f"--topology={name}: libtpu knows no such slice; write GENERATION:SIDES in chips, such as "
      f"{TOPOLOGIES} ({str(e).split(': ', 1)[-1].splitlines()[0]})"
    ) from e


def _parse(name: str) -> tuple[str, tuple[int, ...]]:
  """Parses and checks a topology name; libtpu would abort the process for a dimension of 0."""
  kind, _, text = name.partition(":")
  if kind.lower().startswith(_GPUS):
    raise UserError(
      f"--topology={name}: JAX can describe TPU slices only; to plan for GPUs, run plan without "
      "--topology on a machine that has one (pip install -e '.[cuda13]')"
    )
  # libtpu has a suffix for twisted tori.
  found = re.fullmatch(r"(\d{1,9}(?:x\d{1,9})*)(?:_twisted|_untwisted)?", text, re.ASCII)
  sides = tuple(map(int, found[1].split("x"))) if kind and found else ()
  if problem := _problem(kind, sides):
    raise UserError(
      f"--topology={name}: {problem}; write GENERATION:SIDES in chips, such as {TOPOLOGIES}"
    )
  return kind, sides


def _problem(kind: str, sides: tuple[int, ...]) -> str | None:
  if not sides:
    return "these are not the sides of a slice"
  if 0 in sides:
    return "every side has at least 1 chip"
  chip = next((c for k, c in CHIPS.items() if k.lower().removeprefix("tpu ") == kind.lower()), None)
  if chip and len(sides) != chip.torus:
    return f"a {kind} slice has {chip.torus} sides, not {len(sides)}"
  if len(sides) > 3:
    return f"a slice has 2 or 3 sides, not {len(sides)}"
  if (chips := math.prod(sides)) > _MOST_CHIPS:
    return f"{chips:,} chips are more than the largest pod has, {_MOST_CHIPS:,}"
  return None
