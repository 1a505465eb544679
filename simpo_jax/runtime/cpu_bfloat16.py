"""Whether this machine's CPU multiplies bfloat16 faster than float32."""

import pathlib

_INSTRUCTIONS = ("amx_bf16", "avx512_bf16", "bf16")  # Intel; Intel and AMD; Arm
_CPUINFO = pathlib.Path("/proc/cpuinfo")


def instructions(cpuinfo: pathlib.Path = _CPUINFO) -> str | None:
  """Returns the name of the CPU's bfloat16 instructions, as Linux lists them; None if unknown."""
  try:
    lines = cpuinfo.read_text().splitlines()
  except OSError:
    return None
  features = {
    word
    for line in lines
    if line.lower().startswith(("flags", "features"))
    for word in line.split()
  }
  return next((name for name in _INSTRUCTIONS if name in features), None)


def advice(platform: str, compute: str) -> str | None:
  """Returns what a run that computes in `compute` on `platform` may gain; None if nothing."""
  name = instructions() if platform == "cpu" and compute == "float32" else None
  return name and (
    f"this CPU multiplies bfloat16 faster ({name}): --config.model.compute_dtype=bfloat16 takes "
    "less time, and rounds the operands of matrix products"
  )
