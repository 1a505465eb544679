"""SimPO training with generation in the same compiled program.

Examples:
  python -m simpo_jax.main --config=configs/m11.py
  python -m simpo_jax.main --config=configs/m11.py:smollm2 --workdir=/tmp/run
  python -m simpo_jax.main --config=configs/m11.py --config.train.learning_rate=1e-5

The same command with the same --workdir goes on where an unfinished run was. Exit codes:
0 the whole schedule was done; 2 a mistake, to be mended first; 75 start the same command
again: SIGTERM or ^C stopped the run and it is saved, a host was lost, or a launch hung; 130
^C before the first step, with nothing to save.

Every field of simpo_jax/config.py can be set with --config.FIELD=VALUE; a config
file's docstring says what it runs, on what hardware, and the expected result.
"""

import sys
from collections.abc import Sequence

from absl import app, flags, logging
from ml_collections import config_flags

from simpo_jax import (
  distributed,
  monitor,  # noqa: F401  counts compilations from here on
)
from simpo_jax.cli import end_interrupted, fail, heed_interrupts, parse_flags, refuse_arguments
from simpo_jax.config_check import validate
from simpo_jax.data.truncation import check_lengths
from simpo_jax.errors import Stopped, UserError
from simpo_jax.paths import check_path

_CONFIG = config_flags.DEFINE_config_file(
  "config",
  None,
  "The run: FILE.py or FILE.py:VARIANT, such as configs/m11.py:smollm2.",
  lock_config=True,
)
_WORKDIR = flags.DEFINE_string(
  "workdir",
  None,
  "Where the run's files go, also gs://BUCKET/...; default: a fresh dated folder under runs/.",
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
  "coordinator_address", None, "HOST:PORT of process 0, free to listen on."
)
_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the run, one per host.")
_PROCESS = flags.DEFINE_integer("process_id", None, "Which of them this is, from 0.")


def main(argv: Sequence[str]) -> None:
  """Runs the config; exit code 0 only when its whole schedule was done."""
  refuse_arguments(argv, "--config=configs/m11.py")
  if _CONFIG.value is None:
    raise UserError("name a config: --config=configs/m11.py (see --help)")
  validate(_CONFIG.value)  # before any device is asked for: typos answer at once
  check_lengths(_CONFIG.value.data)
  check_path("--workdir", _WORKDIR.value or "")
  distributed.start(
    distributed.Options(_DISTRIBUTED.value, _COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
  )
  from simpo_jax.run import run

  run(_CONFIG.value, _WORKDIR.value)
  distributed.finish()


def _main(argv: Sequence[str]) -> None:
  logging.set_verbosity(logging.WARNING)
  heed_interrupts()
  try:
    with distributed.ending_together():
      main(argv)
  except Stopped as e:
    print(e)
    sys.exit(e.exit_code)
  except KeyboardInterrupt:
    end_interrupted()
  except UserError as e:
    if _DEBUG.value:
      raise
    fail(e)


if __name__ == "__main__":
  app.run(_main, flags_parser=parse_flags)
