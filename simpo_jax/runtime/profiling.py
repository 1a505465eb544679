"""A trace of some steps, for xprof or TensorBoard; see docs/profiling.md."""

import pathlib
import tempfile

import jax

from simpo_jax import storage


class Profiler:
  """Traces from the start of one step to the end of another, with what runs in between.

  A context manager: a run that ends early leaves a trace of what there was.
  """

  def __init__(self, steps: tuple[int, ...], folder: storage.Path):
    """`steps`: the first and the last, from 1; () for none. Writes under `folder`/profile."""
    self._first, self._last = steps or (0, 0)
    self._folder = folder / "profile"
    self._here: pathlib.Path | None = None  # where the profiler writes: a local disk

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._stop()

  def before(self, step: int) -> None:
    """To be called when a step begins."""
    if step == self._first:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # a call of every Python function drowns the rest
      folder = self._folder
      here = folder if isinstance(folder, pathlib.Path) else pathlib.Path(tempfile.mkdtemp())
      jax.profiler.start_trace(here, profiler_options=options)
      self._here = here

  def after(self, step: int) -> None:
    """To be called when a step and what follows it are done."""
    if step == self._last:
      self._stop()

  def _stop(self) -> None:
    here, self._here = self._here, None
    if here:
      jax.profiler.stop_trace()
      if here != self._folder:
        storage.upload(here, self._folder)
        storage.remove_tree(here)
