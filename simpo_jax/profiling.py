"""A trace of some steps, for xprof or TensorBoard; see docs/profiling.md."""

import pathlib

import jax


class Profiler:
  """Traces from the start of one step to the end of another, with what runs in between.

  A context manager: a run that ends early leaves a trace of what there was.
  """

  def __init__(self, steps: tuple[int, int] | tuple[()], folder: pathlib.Path):
    """`steps`: the first and the last, from 1; () for none. Writes under `folder`/profile."""
    self._first, self._last = steps or (0, 0)
    self._folder = folder / "profile"
    self._running = False

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._stop()

  def before(self, step: int) -> None:
    """To be called when a step begins."""
    if step == self._first:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # a call of every Python function drowns the rest
      jax.profiler.start_trace(self._folder, profiler_options=options)
      self._running = True

  def after(self, step: int) -> None:
    """To be called when a step and what follows it are done."""
    if step == self._last:
      self._stop()

  def _stop(self) -> None:
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
