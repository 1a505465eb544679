"""Profiles some steps, for xprof or TensorBoard; see docs/profiling.md."""

import pathlib
import tempfile

import jax

from simpo_jax import storage


class Profiler:
  """Traces everything from the start of one step to the end of another.

  A context manager: if the run ends early, the trace ends there.
  """

  def __init__(self, steps: tuple[int, ...], folder: storage.Path):
    """Traces nothing yet.

    Args:
      steps: the first and the last step, from 1; () disables the profiler.
      folder: the workdir; the trace is written to `folder`/profile.
    """
    self._first, self._last = steps or (0, 0)
    self._folder = folder / "profile"
    self._local_folder: pathlib.Path | None = None  # on a local disk; None unless tracing

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._stop()

  def before_step(self, step: int) -> None:
    """Must be called when a step begins."""
    if step == self._first:
      options = jax.profiler.ProfileOptions()
      options.python_tracer_level = 0  # Python calls would crowd out the rest
      folder = self._folder
      local = folder if isinstance(folder, pathlib.Path) else pathlib.Path(tempfile.mkdtemp())
      jax.profiler.start_trace(local, profiler_options=options)
      self._local_folder = local

  def after_step(self, step: int) -> None:
    """Must be called when a step and the launches that follow it are done."""
    if step == self._last:
      self._stop()

  def _stop(self) -> None:
    local, self._local_folder = self._local_folder, None
    if local:
      jax.profiler.stop_trace()
      if local != self._folder:
        storage.upload(local, self._folder)
        storage.remove_tree(local)
