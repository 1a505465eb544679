"""Counts the XLA compilations of this process since this module was imported."""

import jax

_COMPILE_EVENT = "/jax/core/compile/backend_compile_duration"
_compiles: list[float] = []


def _listen(event: str, duration_secs: float, **_: str | int) -> None:
  if event == _COMPILE_EVENT:
    _compiles.append(duration_secs)


jax.monitoring.register_event_duration_secs_listener(_listen)


def compile_count() -> int:
  """Returns the number of XLA compilations so far; a run makes exactly one."""
  return len(_compiles)
