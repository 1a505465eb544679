"""run.json: what a run is, what it launched and how it ended; rewritten during the run."""

import contextlib
import datetime
import json
import resource
import socket
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

from simpo_jax import distributed, storage
from simpo_jax.checkpoint.resume import ResumePoint
from simpo_jax.checkpoint.saver import Saver
from simpo_jax.config import as_json
from simpo_jax.errors import UserError
from simpo_jax.models.llama import count_params
from simpo_jax.models.sizes import cache_bytes, layer_weights
from simpo_jax.program.build import Compiled
from simpo_jax.program.compile_count import compile_count
from simpo_jax.runtime.fingerprint import versions
from simpo_jax.runtime.launcher import Launcher
from simpo_jax.runtime.machine_rates import better, measured_rates
from simpo_jax.runtime.progress import Progress
from simpo_jax.runtime.resolve import ResolvedRun
from simpo_jax.settings import Settings
from simpo_jax.trackers.tracker import Tracking
from simpo_jax.workdir import files

_MEASURE_TWICE_AFTER = 60.0  # seconds; a longer run measures the machine's rates again at its end
_REWRITE_SECONDS = 5.0  # between rewrites: the file's list of launches grows with the run


class RunRecord:
  """Content of run.json; process 0 writes the file, atomically.

  Attributes:
    progress: of the run; to be set before `save`.
    data: the content.
  """

  def __init__(
    self,
    folder: storage.Path,
    run: ResolvedRun,
    config: Settings,
    writes: bool,
    start: ResumePoint,
    progress: Progress,
  ):
    self._started = time.perf_counter()
    self._saved = 0.0
    self._path = folder / "run.json"
    self._writes = writes
    self._launch: Launcher | None = None
    self._saver: Saver | None = None
    self._track: Tracking | None = None
    self.progress = progress
    devices = run.program.mesh.devices
    self.data: dict[str, Any] = {
      "status": "compiling",
      "error": None,
      "compiles": 0,
      "executables": 0,
      "launches": [],
      "devices": {
        "kind": devices.flat[0].device_kind,
        "count": devices.size,
        "mesh": dict(run.program.mesh.shape),
      },
      "processes": jax.process_count(),
      "started": round(time.time(), 3),
      "model": _model(run),
      "versions": versions(),
      "date": run.date,
      "data": {},
      "pairs": {"train": len(run.train_pairs), "held_out": len(run.eval_pairs)},
      "timings": {},
      "resumes": self._resumes(start),
    }
    if devices.flat[0].platform == "cpu" and jax.process_count() == 1:
      self.data["rates"] = measured_rates("at the start of the run")
    if start.folder is not None and not start.is_resume:
      self.data["began_with"] = str(start.folder)
    if writes:
      files.write_json(folder / "config.json", as_json(config))
    self.save("compiling")

  def compiled(self, compiled: Compiled, changes: list[str]) -> None:
    """Adds compile time, memory, and what `resume.changes_since` found."""
    self.data["program"] = compiled.fingerprint
    if changes:
      self.data["resumes"][-1]["program_changes"] = changes
    self.data["peak_bytes"] = compiled.memory.peaks()
    self.data["memory"] = compiled.memory._asdict()
    self.data["timings"]["compile"] = round(compiled.compile_seconds, 3)
    self.save("loading")

  def set_tracking(self, track: Tracking) -> None:
    """Sets the trackers whose state the file includes."""
    self._track = track

  def set_launcher(self, launch: Launcher, saver: Saver) -> None:
    """Sets the launcher and the saver whose logs the file includes."""
    self._launch, self._saver = launch, saver

  def save(self, status: str, error: str | None = None) -> None:
    """Writes the file; while the status stays "running", at most every few seconds."""
    now = time.perf_counter()
    if status == self.data["status"] == "running" and now - self._saved < _REWRITE_SECONDS:
      return
    self._saved = now
    self.data.update(
      status=status,
      error=error,
      data={name: report._asdict() for name, report in self.progress.skips.items()},
      compiles=compile_count(),
      peak_rss_bytes=_peak_rss(),
    )
    self.data["timings"]["total"] = round(now - self._started, 3)
    if self._launch is not None:
      self.data["executables"] = len(self._launch.executables)
      self.data["launches"] = [entry["mode"] for entry in self._launch.log]
      self.data["timings"]["launches"] = self._launch.log
    if self._saver is not None:
      self.data["timings"]["checkpoint_seconds"] = self._saver.seconds
    if self._track is not None:
      self.data["tracking"] = self._track.state
    if self._writes:
      files.flush_metrics(self._path.parent, now=status != "running")
      files.write_json(self._path, self.data)

  def finished(self, status: str) -> None:
    """Writes the file at the end of the run, with counts of all hosts; all must call this."""
    if "rates" in self.data and time.perf_counter() - self._started > _MEASURE_TWICE_AFTER:
      self.data["rates"] = better(self.data["rates"], measured_rates("at the end of the run"))
    self.save(status)
    names = ("compiles", "executables", "launches", "program", "peak_rss_bytes")
    local = {"host": socket.gethostname(), **{name: self.data[name] for name in names}}
    hosts = distributed.gather("record", json.dumps(local))
    self.data["hosts"] = [json.loads(host) for host in hosts]
    self.save(status)

  def _resumes(self, start: ResumePoint) -> list[dict[str, Any]]:
    """All resumes of the run so far, this one included."""
    if not start.is_resume:
      return []
    try:
      before = json.loads(self._path.read_text()).get("resumes", [])
    except (*storage.failures(), ValueError):  # only process 0 can rely on the file
      before = []
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return [*before, {"step": start.position.step, "checkpoint": start.position.name, "when": now}]

  @contextlib.contextmanager
  def recording_failures(self):
    """Records the error if the body raises, or if the process is ended from another thread."""

    def save_error(error: str) -> None:
      with contextlib.suppress(UserError):  # the error itself matters more
        self.save("failed", error)

    distributed.add_exit_hook(save_error)
    try:
      yield
    except KeyboardInterrupt:
      save_error("stopped by ^C")
      raise
    except BaseException as e:
      save_error(f"{type(e).__name__}: {e}")
      raise


def _peak_rss() -> int:
  """Peak resident memory of this process, in bytes."""
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _model(run: ResolvedRun) -> dict[str, Any]:
  """The model's name and sizes; a report derives lower bounds of times from them."""
  config, item = run.model.config, jnp.dtype(run.program.step.dtype).itemsize
  return {
    "name": run.model.name,
    "type": config.model_type,
    "params": count_params(config),
    "layer_weights": layer_weights(config),
    "output_weights": config.vocab_size * config.hidden_size,
    "cache_bytes_per_token": cache_bytes(config, 1, item),
    "item_bytes": item,
    "param_dtype": str(jnp.dtype(run.program.param_dtype)),
    "compute_dtype": str(jnp.dtype(run.program.step.dtype)),
  }
