"""A trace of some steps, for xprof or TensorBoard; see docs/profiling.md."""

import pathlib
import tempfile

import jax

from simpo_jax import storage


class Profiler:
  """Traces from the start of one step to the end of another, with what runs in between.

  A context manager: a run that ends early leaves a trace of what there was.
  """

  def __init__(self, steps: tuple[int, int] | tuple[()], folder: storage.Path):
    """`steps`: the first and the last, from 1; () for none. Writes under `folder`/profile."""
    self._first, self._last = steps or (0, 0)
    self._folder = folder / "profile"
    self._here = self._folder  # the profiler writes to local disks only
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
      if storage.is_remote(self._folder):
        self._here = pathlib.Path(tempfile.mkdtemp())
      jax.profiler.start_trace(self._here, profiler_options=options)
      self._running = True

  def after(self, step: int) -> None:
    """To be called when a step and what follows it are done."""
    if step == self._last:
      self._stop()

  def _stop(self) -> None:
    if self._running:
      self._running = False
      jax.profiler.stop_trace()
      if self._here != self._folder:
        storage.upload(self._here, self._folder)
        storage.remove_tree(self._here)
