"""run.json: what a run is, what it launched and how it ended, rewritten as it goes."""

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

_LONG = 60.0  # seconds of a run that is worth a second look at what its machine can do
_EVERY = 5.0  # seconds between rewrites in the middle of a run, whose list of launches grows


class RunRecord:
  """The content of run.json; process 0 writes it, whole or not at all.

  Attributes:
    progress: of the run, as it is to be told.
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
    if start.folder is not None and not start.own:
      self.data["began_with"] = str(start.folder)
    if writes:
      files.write_json(folder / "config.json", as_json(config))
    self.save("compiling")

  def compiled(self, compiled: Compiled, changes: list[str]) -> None:
    """Adds what the compiler said, and what `resume.changes_since` the checkpoint."""
    self.data["program"] = compiled.fingerprint
    if changes:
      self.data["resumes"][-1]["program_changes"] = changes
    self.data["peak_bytes"] = compiled.memory.peaks()
    self.data["memory"] = compiled.memory._asdict()
    self.data["timings"]["compile"] = round(compiled.compile_seconds, 3)
    self.save("loading")

  def tracking(self, track: Tracking) -> None:
    """From now on, what becomes of the rows is this one's to say."""
    self._track = track

  def launching(self, launch: Launcher, saver: Saver) -> None:
    """From now on, the launches are this launcher's, and the saves this saver's."""
    self._launch, self._saver = launch, saver

  def save(self, status: str, error: str | None = None) -> None:
    """Writes the file; while the run goes well, every few seconds at most."""
    now = time.perf_counter()
    if status == self.data["status"] == "running" and now - self._saved < _EVERY:
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
    """The end of the run, with what every host has to say about itself."""
    if "rates" in self.data and time.perf_counter() - self._started > _LONG:
      self.data["rates"] = better(self.data["rates"], measured_rates("at the end of the run"))
    self.save(status)
    own = {name: self.data[name] for name in ("compiles", "executables", "launches", "program")}
    own["peak_rss_bytes"] = self.data["peak_rss_bytes"]
    hosts = distributed.gather("record", json.dumps({"host": socket.gethostname(), **own}))
    self.data["hosts"] = [json.loads(host) for host in hosts]
    self.save(status)

  def _resumes(self, start: ResumePoint) -> list[dict[str, Any]]:
    """Of the whole run, this one included: from which step, and when."""
    if not start.own:
      return []
    try:
      before = json.loads(self._path.read_text()).get("resumes", [])
    except (*storage.failures(), ValueError):  # another process's to read
      before = []
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return [*before, {"step": start.position.step, "checkpoint": start.position.name, "when": now}]

  @contextlib.contextmanager
  def failures(self):
    """Notes whatever ends the run before its time."""

    def note(error: str) -> None:
      with contextlib.suppress(UserError):  # where this cannot be written, little can
        self.save("failed", error)

    distributed.at_end(note)
    try:
      yield
    except KeyboardInterrupt:
      note("stopped by ^C")
      raise
    except BaseException as e:
      note(f"{type(e).__name__}: {e}")
      raise


def _peak_rss() -> int:
  """Bytes of memory that this process held at most."""
  unit = 1 if sys.platform == "darwin" else 1024
  return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _model(run: ResolvedRun) -> dict[str, Any]:
  """The sizes that least times follow from."""
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
