"""SimPO training with generation in the same compiled program.

Examples:
  python -m simpo_jax.main --config=configs/m11.py
  python -m simpo_jax.main --config=configs/m11.py:smollm2 --workdir=/tmp/run
  python -m simpo_jax.main --config=configs/m11.py --config.train.learning_rate=1e-5

The same command with the same --workdir resumes an unfinished run. Exit codes: 0 the run is
complete; 2 user error, fix it first; 75 resumable, start the same command again (stopped by
SIGTERM or ^C and saved, a host was lost, or a launch hung); 130 ^C before the first step, with
nothing to save.

Every field below can be set with --config.FIELD=VALUE. The docstring of a config file says
what it runs, on which hardware, and what to expect.
"""

import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from simpo_jax import distributed, interrupts
from simpo_jax.cli import exit_with_error, parse_flags, refuse_arguments
from simpo_jax.config_check import validate
from simpo_jax.errors import Stopped, UserError
from simpo_jax.storage.paths import check_path

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "Config file: FILE.py or FILE.py:VARIANT, such as configs/m11.py:smollm2.",
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Output folder, local or gs://BUCKET/...; default: a new dated folder under runs/.",
)
_INTO_EXISTING = flags.DEFINE_bool(
  "into_existing", False, "Accept a --workdir that contains other files; they are left alone."
)
_DEBUG = flags.DEFINE_bool("debug", False, "Show the stack trace of errors.")
_DISTRIBUTED = flags.DEFINE_enum(
  "distributed",
  "auto",
  ["auto", "off"],
  "auto: join the other processes of a TPU slice, or those that the three flags below (or "
  "JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID) name; off: run alone.",
)
_COORDINATOR = flags.DEFINE_string(
  "coordinator_address", None, "HOST:PORT on which process 0 listens."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Number of processes, one per host.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Index of this process, from 0.")


def main(argv: Sequence[str]) -> None:
  """Runs the config; returns only when its whole schedule is complete."""
  refuse_arguments(argv, "--config=configs/m11.py")
  if _CONFIG.value is None:
    raise UserError("name a config: --config=configs/m11.py (see --help)")
  settings = validate(_CONFIG.value)  # before devices are initialized, which takes a while
  check_path("--workdir", _WORKDIR.value or "")
  distributed.start(
    distributed.Options(_DISTRIBUTED.value, _COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  )
  from simpo_jax.run import run

  run(settings, _WORKDIR.value, _INTO_EXISTING.value)
  distributed.finish()


def _main(argv: Sequence[str]) -> None:
  logging.set_verbosity(logging.WARNING)
  interrupts.install_handler()
  try:
    with distributed.ending_together():
      main(argv)
  except Stopped as e:
    print(e)
    sys.exit(e.exit_code)
  except KeyboardInterrupt:
    interrupts.exit_now()
  except UserError as e:
    if _DEBUG.value:
      raise
    exit_with_error(e)


if __name__ == "__main__":
  app.run(_main, flags_parser=parse_flags)
