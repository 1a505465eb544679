"""Settings of what surrounds a run: checkpoints, export, mesh, watchdog, trackers, report."""

from simpo_jax.settings.field import choice, flag, integer, items, number, text

GROUPS = {
  "checkpoint": "checkpoints and resuming",
  "export": "export to a Hugging Face folder",
  "mesh": "how devices are split between data, FSDP and tensor parallelism",
  "watchdog": "detection of hanging launches",
  "profile": "profiling",
  "log": "terminal output",
  "tracking": "metric trackers",
  "report": "the HTML report",
}
# fmt: off
FIELDS = (
  # checkpoint
  integer(
    "checkpoint.every", 0,
    "Save every this many steps; 0: only at a stop and at the end.",
    0,
  ),
  number(
    "checkpoint.minutes", 0.0,
    "Also save when this many minutes have passed since the last save; 0: off.",
    0.0,
  ),
  integer("checkpoint.keep", 2, "Number of most recent checkpoints to keep.", 1),
  integer(
    "checkpoint.keep_every", 0,
    "Also keep checkpoints whose step is a multiple of this; 0: none.",
    0,
  ),
  flag("checkpoint.at_end", True, "Save after the last step."),
  flag(
    "checkpoint.resume", True,
    "Resume an unfinished run found in the workdir; False: start over.",
  ),
  text("checkpoint.init_from", "", "Workdir or checkpoint folder to initialize from.", path=True),
  choice(
    "checkpoint.init_what", "weights",
    'What to take from init_from; "all" includes the optimizer state and the step.',
    ("weights", "all"),
  ),

  # export
  flag("export.at_end", False, "Export the last checkpoint to WORKDIR/export when the run ends."),
  choice(
    "export.dtype", "auto",
    "Dtype of the exported weights; auto: that of the run.",
    ("auto", "float32", "bfloat16", "float16"),
  ),
  flag("export.average", True, "Export the averaged weights, if there are any (train.ema_decay)."),
  number(
    "export.shard_gb", 5.0,
    "Maximum size of one weights file, in 10^9 bytes.",
    1e-06, 10000.0,
  ),

  # mesh
  integer(
    "mesh.data", 1,
    "Data-parallel groups per host, each with a full copy of the weights; a host's devices are "
    "data * fsdp * tensor.",
    1,
  ),
  integer(
    "mesh.fsdp", 0,
    "Devices that share one copy of the weights; 0: the rest of the host.",
    0,
  ),
  integer("mesh.tensor", 1, "Tensor-parallel devices per group; groups never span hosts.", 1),
  flag(
    "mesh.shard_over_hosts", True,
    "Shard weights and optimizer state across hosts, too; False: each host holds a full copy.",
  ),

  # watchdog
  number(
    "watchdog.factor", 10.0,
    "A launch that takes this many times longer than any before it of its mode counts as "
    "hanging; 0: off.",
    0.0,
  ),
  number(
    "watchdog.least_seconds", 600.0,
    "Minimum seconds before a launch can count as hanging.",
    0.1,
  ),
  number("watchdog.first_seconds", 7200.0, "Seconds the first launch of each mode may take.", 0.1),

  # profile
  items(
    "profile.steps", (),
    "(first, last): write an xprof trace of these steps and everything between them.",
    int, "(3,6)",
  ),

  # log
  integer(
    "log.samples_shown", 3,
    "Generated samples to print after each launch and to show in trackers.",
    0,
  ),

  # tracking
  flag("tracking.tensorboard", True, "Write TensorBoard event files to the workdir."),
  flag("tracking.wandb", False, "Log to Weights & Biases: pip install 'simpo_jax[wandb]'."),
  text("tracking.wandb_project", "simpo_jax", "Weights & Biases project."),
  choice(
    "tracking.wandb_mode", "online",
    '"offline" stores the run for a later `wandb sync`.',
    ("online", "offline"),
  ),
  flag("tracking.mlflow", False, "Log to MLflow: pip install 'simpo_jax[mlflow]'."),
  text("tracking.mlflow_uri", "", "MLflow server or sqlite:///FILE; empty: MLflow's default."),
  text("tracking.mlflow_experiment", "simpo_jax", "MLflow experiment."),
  text("tracking.name", "", "Run name in the trackers; empty: the workdir's name."),
  number(
    "tracking.flush_seconds", 10.0,
    "Seconds to wait for trackers to flush when the run ends.",
    0.0, 3600.0,
  ),

  # report
  flag("report.write", True, "Write report.html to the workdir."),
  number(
    "report.every_seconds", 60.0,
    "Rewrite the report this often, and at the end; 0: only at the end.",
    0.0,
  ),
  integer(
    "report.max_mib", 96,
    "Maximum compressed size of generated text in the report; the rest stays in samples/.",
    0, 1024,
  ),
)
# fmt: on
