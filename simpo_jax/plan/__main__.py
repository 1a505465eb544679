"""Estimates a run's memory, step time and collectives, and reports whether it fits.

Compiles the run's program ahead of time for a TPU slice, which need not be attached,
and executes nothing. Without --topology it compiles for the devices of this machine.

Examples:
  python -m simpo_jax.plan --config=configs/m11.py:llama3_8b_v5p32 --topology=v5p:2x2x4
  python -m simpo_jax.plan --config=configs/m11.py --topology=v5e:2x2 --json=plan.json
  python -m simpo_jax.plan --config=configs/m11.py --config.train.batch_size=16

A topology is a TPU generation and the dimensions of the slice in chips: v5p:2x2x4 (a
v5p-32), v4:2x2x4, v5e:4x4, v6e:4x4. TPUs need libtpu: pip install -e '.[tpu]'.

If model, tokenizer and data are on this machine, the program is exactly the run's.
Nothing is downloaded for a plan: otherwise, a model with a known hub id is planned with
assumed prompt and response lengths, and the output says so.
"""

import json
import os
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from simpo_jax.cli import refuse_arguments, run_program
from simpo_jax.config_check import validate
from simpo_jax.errors import UserError
from simpo_jax.plan.topology import TOPOLOGIES, topology_devices
from simpo_jax.storage.paths import brief, plain

_FLAGS = ("config", "topology", "json", "prompt_tokens", "response_tokens", "debug")


def _define_flags() -> None:
  config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file: FILE.py or FILE.py:VARIANT, such as configs/m11.py:llama3_8b_v5p32.",
    lock_config=True,
  )
  flags.DEFINE_string(
    "topology", None, f"Slice to compile for ({TOPOLOGIES}, ...); default: local devices."
  )
  flags.DEFINE_string("json", None, "Output file for the plan as JSON.")
  flags.DEFINE_integer(
    "prompt_tokens", 256, "Prompt length to assume if the prompts are not available.", lower_bound=1
  )
  flags.DEFINE_integer(
    "response_tokens",
    384,
    "Response length to assume if the data is not available.",
    lower_bound=2,
  )
  flags.DEFINE_bool("debug", False, "Show the stack trace of errors.")


def main(argv: Sequence[str]) -> None:
  """Prints the plan and writes the --json file; exits with 0 even if the run does not fit."""
  values = flags.FLAGS
  refuse_arguments(argv, "--config=configs/m11.py")
  if values.config is None:
    raise UserError("name a config: --config=configs/m11.py (see --help)")
  config = validate(values.config)
  path = values.json and plain(values.json)
  if path and not path.parent.is_dir():
    folder = brief(path.parent)
    raise UserError(f"--json={values.json}: there is no folder {folder}; create it first")
  os.environ["HF_HUB_OFFLINE"] = "1"  # a plan downloads nothing
  if values.topology:
    import jax

    # This machine's TPU, if it has one, may be in use by another process.
    jax.config.update("jax_platforms", "cpu")
  from simpo_jax.plan import text
  from simpo_jax.plan.planning import make_plan

  devices = topology_devices(values.topology) if values.topology else None
  plan = make_plan(
    config,
    devices,
    prompt_tokens=values.prompt_tokens,
    response_tokens=values.response_tokens,
    topology=values.topology,
  )
  if path:
    path.write_text(json.dumps(plan, indent=2) + "\n")
  print(text.render(plan))


if __name__ == "__main__":
  _define_flags()
  run_program(main, _FLAGS)
