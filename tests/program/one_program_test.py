"""The one program: compiled once, state in place, generation leaves training untouched.

Each device count runs in a process of its own, since jax fixes it at its start.
"""

import functools
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
from typing import Any

import pytest

from support.checked import CHECKED_PYTHON
from support.hosts import QUICK
from support.overlap import crosses_hosts

pytestmark = pytest.mark.program

STEPS = 7
SMALL = {
  "generate.max_new_tokens": 16,
  "generate.count": 12,
  "data.embedded_pairs": 64,
  "generate.template": "Count to {index}.",
}


@functools.cache
def _results(devices):
  """What `_work` below found on so many devices."""
  with tempfile.TemporaryDirectory() as folder:
    env = dict(
      os.environ,
      JAX_PLATFORMS="cpu",
      XLA_FLAGS=f"--xla_force_host_platform_device_count={devices} {QUICK}",
      PYTHONPATH=os.pathsep.join(sys.path),
    )
    done = subprocess.run(
      [*CHECKED_PYTHON, __file__, folder], env=env, text=True, capture_output=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads((pathlib.Path(folder) / "results.json").read_text())


@pytest.fixture(params=(pytest.param(1, marks=pytest.mark.slow), 4), ids=("1_device", "4_devices"))
def results(request):
  return _results(request.param)


def test_one_compile_one_executable(results):
  record = results["interleaved"]["record"]
  assert (record["compiles"], record["executables"]) == (1, 1)
  assert record["launches"] == ["train", "train", "generate", *["train"] * 5, "evaluate"]
  assert record["status"] == "done"


def test_training_is_bit_identical_with_and_without_generation(results):
  with_generation, without = results["interleaved"], results["train_only"]
  assert without["record"]["launches"] == [*["train"] * STEPS, "evaluate"]
  assert with_generation["params"] == without["params"]
  assert with_generation["opt_state"] == without["opt_state"]
  assert len(with_generation["train_metrics"]) == STEPS
  assert with_generation["train_metrics"] == without["train_metrics"]
  assert with_generation["initial_params"] != with_generation["params"]


def test_state_is_updated_in_place(results):
  memory = results["interleaved"]["record"]["memory"]
  state = results["state_bytes_per_device"]
  assert memory["aliased"] == state


def test_every_request_is_answered(results):
  rows = results["interleaved"]["samples"]
  assert [(r["prompt_index"], r["sample_index"]) for r in rows] == [(i, 0) for i in range(12)]
  for row in rows:
    assert 1 <= row["generated_token_count"] == len(row["generated_token_ids"]) <= 16
    assert row["finish_reason"] == ("length" if row["generated_token_count"] == 16 else "stop")


def test_global_mesh_generates_the_same(results):
  assert results["global_mesh_tokens"] == [
    r["generated_token_ids"] for r in results["interleaved"]["samples"]
  ]


def test_four_devices_generate_the_same_as_one():
  """Their weights differ in rounding after two steps of training; no choice was that near."""
  tokens = [
    [r["generated_token_ids"] for r in _results(n)["interleaved"]["samples"]] for n in (1, 4)
  ]
  assert tokens[0] == tokens[1]


def test_two_host_rows_generate_the_same():
  results = _results(4)
  assert results["two_hosts_tokens"] == [
    r["generated_token_ids"] for r in results["interleaved"]["samples"]
  ]


def test_hosts_that_disagree_abort_with_the_state_intact():
  drift = _results(4)["drift"]
  assert drift["mode"] == "ABORT"
  assert drift["state_unchanged"]
  assert drift["message"] == "host 1 wanted mode generate (host 0: train)"
  assert drift["data_mode"] == "ABORT"
  assert drift["data_unchanged"]
  assert drift["data_message"] == "host 1 wanted data 0300000005000000 (host 0: 0300000004000000)"
  assert drift["next_launch_mode"] == "TRAIN"


def test_a_stop_on_one_host_row_stops_all_with_the_state_intact():
  drift = _results(4)["drift"]
  assert (drift["stop_mode"], drift["stop_seen"]) == ("ABORT", [0, 1])
  assert drift["stop_unchanged"]


def test_the_decode_loop_crosses_hosts_for_its_own_check_alone():
  crossing = _results(4)["decode_collectives_across_hosts"]
  assert set(crossing) == {"s32[3] all-reduce"}, crossing


# --- in the process with the devices -------------------------------------------------------


def _config(**changes):
  from simpo_jax.config import default_config
  from simpo_jax.config_check import validate

  c = default_config()
  c.train.steps = STEPS
  c.train.learning_rate = 1e-3
  c.train.warmup_ratio = 0.0
  c.data.max_length, c.data.max_prompt_length, c.data.row_length = 256, 128, 256
  c.generate.page_size = c.generate.prefill_chunk = 32
  c.generate.at_steps = (2,)
  c.update_from_flattened_dict({**SMALL, **changes})
  return validate(c)


def _digest(tree):
  import hashlib

  import jax
  import numpy as np

  return [hashlib.sha256(np.asarray(x).tobytes()).hexdigest() for x in jax.tree.leaves(tree)]


def _run(folder, name, **changes):
  import chex

  from simpo_jax.run import run

  state, workdir = run(_config(**changes), str(folder / name))
  chex.assert_tree_all_finite(state)
  rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  timed = ("step_seconds", "tokens_per_second", "data_wait_seconds")
  samples = [
    json.loads(line)
    for f in sorted(workdir.glob("samples/*/host_*.jsonl"))
    for line in f.read_text().splitlines()
  ]
  return {
    "params": _digest(state.params),
    "opt_state": _digest(state.opt_state),
    "train_metrics": [
      {k: v for k, v in r.items() if k not in timed} for r in rows if r["mode"] == "train"
    ],
    "record": json.loads((workdir / "run.json").read_text()),
    "samples": samples,
  }, state


def _two_hosts(folder):
  """The same run on a mesh of two host rows, and a launch they disagree on."""
  import jax
  import numpy as np

  from simpo_jax.data.packing import pack
  from simpo_jax.generate.results import sample_rows, summarize
  from simpo_jax.models import sharding
  from simpo_jax.models.weights import load_params
  from simpo_jax.program import build as programs
  from simpo_jax.program import configure
  from simpo_jax.program.agreement import describe_disagreement
  from simpo_jax.program.inputs import input_shardings, put_inputs
  from simpo_jax.program.ledger import STOP, Mode, make_row
  from simpo_jax.program.state import init_state, state_sharding
  from simpo_jax.run import pairs_by_step
  from simpo_jax.runtime import resolve

  # One host draws from the best token alone, the other is greedy: the same tokens, but
  # not the same need for what a draw exchanges inside a host.
  config = _config(**{"generate.temperature": 0.7, "generate.top_k": 1})
  run = resolve.resolve(config, configure.mesh_of(config.mesh, hosts=2))
  run.packed.each.sampling.temperature[1] = 0
  cfg = run.program
  compiled = programs.compile_program(cfg)
  crossing = _across_hosts(compiled.call.as_text())
  params = load_params(run.model, state_sharding(cfg).params, "float32", config.seed)
  state = init_state(cfg, params)
  pairs_of = pairs_by_step(run, config)
  batch_in, requests_in, ledger_in = input_shardings(cfg)
  requests = put_inputs(run.packed, requests_in)

  def launch(state, modes, step=1, stop=(False, False), data=((3, 4), (3, 4))):
    each = zip(modes, data, stop, strict=True)
    ledger = np.stack([make_row(m, 0, (1, 2), d, s) for m, d, s in each])
    batch = pack(pairs_of(step), cfg.batch)
    return compiled.call(
      state,
      put_inputs(batch, batch_in),
      requests,
      sharding.device_put(ledger, ledger_in),
    )

  for step in (1, 2):
    state, report = launch(state, (Mode.TRAIN, Mode.TRAIN), step)
  state, report = launch(state, (Mode.GENERATE, Mode.GENERATE))
  summary = summarize(report.generated, run.assignments)
  rows = sample_rows(
    range(len(run.requests)),
    run.requests,
    run.assignments,
    report.generated,
    summary,
    run.tokenizer.decode,
    2,
    1,
    False,
  )
  tokens = [r["generated_token_ids"] for r in rows]
  before = _digest(state)
  state, report = launch(state, (Mode.TRAIN, Mode.GENERATE))
  drift = {
    "mode": Mode(int(report.mode)).name,
    "state_unchanged": _digest(state) == before,
    "message": describe_disagreement(np.asarray(report.ledger)),
  }
  state, report = launch(state, (Mode.TRAIN, Mode.TRAIN), 3, data=((3, 4), (3, 5)))
  drift["data_mode"] = Mode(int(report.mode)).name
  drift["data_unchanged"] = _digest(state) == before
  drift["data_message"] = describe_disagreement(np.asarray(report.ledger))
  state, report = launch(state, (Mode.TRAIN, Mode.TRAIN), 3, stop=(False, True))
  drift["stop_mode"] = Mode(int(report.mode)).name
  drift["stop_seen"] = np.asarray(report.ledger)[:, STOP].tolist()
  drift["stop_unchanged"] = _digest(state) == before
  state, report = launch(state, (Mode.TRAIN, Mode.TRAIN), 3)
  drift["next_launch_mode"] = Mode(int(report.mode)).name
  jax.block_until_ready(state)
  return tokens, drift, crossing


def _across_hosts(text):
  """What the decode loop exchanges between the host rows {0, 1} and {2, 3}."""
  from simpo_jax.program.hlo import collectives

  decode = [c for c in collectives(text) if re.search(r"/decode_\d+/while/", c.scope)]
  assert decode
  return [f"{c.shapes} {c.kind}" for c in decode if crosses_hosts(c, 2)]


def _work(folder):
  import jax

  from simpo_jax.program import compile_count  # noqa: F401  counts from here
  from simpo_jax.program.state import state_sharding
  from simpo_jax.runtime.resolve import resolve

  out: dict[str, Any] = {"devices": jax.device_count()}
  # First of all, so that its count of compilations is that of the process.
  out["interleaved"], state = _run(folder, "interleaved")
  out["state_bytes_per_device"] = sum(
    x.addressable_shards[0].data.nbytes for x in jax.tree.leaves(state)
  )
  out["train_only"], _ = _run(folder, "train_only", **{"generate.at_steps": ()})
  global_mesh, _ = _run(folder, "global_mesh", **{"generate.mode": "global_mesh", "train.steps": 2})
  out["global_mesh_tokens"] = [r["generated_token_ids"] for r in global_mesh["samples"]]
  run = resolve(_config())
  from simpo_jax.models.weights import load_params

  out["interleaved"]["initial_params"] = _digest(
    load_params(run.model, state_sharding(run.program).params, "float32", 0)
  )
  if out["devices"] > 1:
    (out["two_hosts_tokens"], out["drift"], out["decode_collectives_across_hosts"]) = _two_hosts(
      folder
    )
  (folder / "results.json").write_text(json.dumps(out))


if __name__ == "__main__":
  _work(pathlib.Path(sys.argv[1]))
