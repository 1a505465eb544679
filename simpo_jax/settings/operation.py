"""Settings of a run's operation: checkpoints, export, mesh, watchdog, trackers, report."""

import dataclasses

from simpo_jax.settings.field import choice, flag, integer, items, number, text


@dataclasses.dataclass(frozen=True)
class CheckpointSettings:
  """Checkpoints and resuming."""

  every: int = integer(
    0,
    "Save every this many steps; 0: only at a stop and at the end.",
    0,
  )
  minutes: float = number(
    0.0,
    "Also save when this many minutes have passed since the last save; 0: off.",
    0.0,
  )
  keep: int = integer(2, "Number of most recent checkpoints to keep.", 1)
  keep_every: int = integer(
    0,
    "Also keep checkpoints whose step is a multiple of this; 0: none.",
    0,
  )
  at_end: bool = flag(True, "Save after the last step.")
  resume: bool = flag(
    True,
    "Resume an unfinished run found in the workdir; False: start over.",
  )
  init_from: str = text("", "Workdir or checkpoint folder to initialize from.", path=True)
  init_what: str = choice(
    "weights",
    'What to load from init_from; "all" includes the optimizer state and the step.',
    ("weights", "all"),
  )


@dataclasses.dataclass(frozen=True)
class ExportSettings:
  """Export to a Hugging Face folder."""

  at_end: bool = flag(False, "Export the last checkpoint to WORKDIR/export when the run ends.")
  dtype: str = choice(
    "auto",
    "Dtype of the exported weights; auto: that of the run.",
    ("auto", "float32", "bfloat16", "float16"),
  )
  average: bool = flag(True, "Export the averaged weights, if there are any (train.ema_decay).")
  shard_gb: float = number(
    5.0,
    "Maximum size of one weights file, in 10^9 bytes.",
    1e-06,
    10000.0,
  )


@dataclasses.dataclass(frozen=True)
class MeshSettings:
  """How devices are split between data, FSDP and tensor parallelism."""

  data: int = integer(
    1,
    "Data-parallel groups per host, each with a full copy of the weights; a host's devices are "
    "data * fsdp * tensor.",
    1,
  )
  fsdp: int = integer(
    0,
    "Devices over which one copy of the weights is sharded; 0: the remaining devices of the host.",
    0,
  )
  tensor: int = integer(1, "Tensor-parallel devices per group; groups never span hosts.", 1)
  shard_over_hosts: bool = flag(
    True,
    "Shard weights and optimizer state across hosts, too; False: each host holds a full copy.",
  )


@dataclasses.dataclass(frozen=True)
class WatchdogSettings:
  """Detection of hanging launches."""

  factor: float = number(
    10.0,
    "A launch counts as hanging after this many times the duration of the longest earlier launch "
    "of its mode; 0: off.",
    0.0,
  )
  least_seconds: float = number(
    600.0,
    "Minimum seconds before a launch counts as hanging.",
    0.1,
  )
  first_seconds: float = number(7200.0, "Maximum seconds for the first launch of each mode.", 0.1)


@dataclasses.dataclass(frozen=True)
class ProfileSettings:
  """Profiling."""

  steps: tuple[int, ...] = items(
    (),
    "(first, last): write an xprof trace of these steps and everything between them.",
    int,
    "(3,6)",
  )


@dataclasses.dataclass(frozen=True)
class LogSettings:
  """Terminal output."""

  samples_shown: int = integer(
    3,
    "Generated samples to print after each launch and to show in trackers.",
    0,
  )


@dataclasses.dataclass(frozen=True)
class TrackingSettings:
  """Metric trackers."""

  tensorboard: bool = flag(True, "Write TensorBoard event files to the workdir.")
  wandb: bool = flag(False, "Log to Weights & Biases: pip install 'simpo_jax[wandb]'.")
  wandb_project: str = text("simpo_jax", "Weights & Biases project.")
  wandb_mode: str = choice(
    "online",
    '"offline" stores the run for a later `wandb sync`.',
    ("online", "offline"),
  )
  mlflow: bool = flag(False, "Log to MLflow: pip install 'simpo_jax[mlflow]'.")
  mlflow_uri: str = text("", "MLflow server or sqlite:///FILE; empty: MLflow's default.")
  mlflow_experiment: str = text("simpo_jax", "MLflow experiment.")
  name: str = text("", "Run name in the trackers; empty: the workdir's name.")
  flush_seconds: float = number(
    10.0,
    "Seconds to wait for trackers to flush when the run ends.",
    0.0,
    3600.0,
  )


@dataclasses.dataclass(frozen=True)
class ReportSettings:
  """The HTML report."""

  write: bool = flag(True, "Write report.html to the workdir.")
  every_seconds: float = number(
    60.0,
    "Rewrite the report this often, and at the end; 0: only at the end.",
    0.0,
  )
  max_mib: int = integer(
    96,
    "Maximum compressed size of generated text in the report; the rest stays in samples/.",
    0,
    1024,
  )
