"""simpo_jax's side of bench/train.py, run in a separate process.

  python bench/train_ours.py JOB.json

`side: ours` and `side: sweep` run training steps as a run does; `side: limits` measures this
machine's matmuls. The result is written to the job's `out` path.
"""

import json
import pathlib
import runpy
import sys
import time
from collections.abc import Callable
from typing import Any

import common
import jax
import jax.numpy as jnp
import numpy as np

from simpo_jax.config import as_json
from simpo_jax.config_check import validate
from simpo_jax.data.packing import pack, pair_contents, pair_length
from simpo_jax.data.types import PairTokens
from simpo_jax.errors import UserError
from simpo_jax.models.sizes import layer_weights
from simpo_jax.models.weights import load_params, open_model
from simpo_jax.plan.workload import attention_flops, model_flops, step_work
from simpo_jax.program import compile_count
from simpo_jax.program.build import compile_program
from simpo_jax.program.inputs import local_rows
from simpo_jax.program.ledger import Mode, digest
from simpo_jax.program.state import init_state, state_sharding
from simpo_jax.run import pairs_by_step
from simpo_jax.runtime.launcher import Launcher
from simpo_jax.runtime.resolve import resolve
from simpo_jax.runtime.watchdog import Watchdog
from simpo_jax.train.step import TrainState

WARM = 1  # untimed steps
LAYERS = 8  # layers whose matmuls are timed together
M11 = pathlib.Path(__file__).resolve().parent.parent / "configs" / "m11.py"


def main(path: str) -> None:
  """Runs the job of a JSON file and writes its result to the job's `out` path."""
  job = json.loads(pathlib.Path(path).read_text())
  result = {"ours": _ours, "sweep": _ours, "limits": _limits}[job["side"]](job)
  pathlib.Path(job["out"]).write_text(json.dumps(result))


def config(job: dict):
  """Returns configs/m11.py:smollm2 with a job's settings, without generation and evaluation."""
  c = runpy.run_path(str(M11))["get_config"]("smollm2")
  c.model.source = job["model"]
  c.model.compute_dtype = job["dtype"]
  c.data.max_length = job["max_length"]
  c.data.max_prompt_length = min(c.data.max_prompt_length, job["max_length"] // 2)
  c.data.train = (job["data"],)
  c.data.row_length = job["row_length"]
  c.train.batch_size = job["pairs"]
  c.train.schedule = "constant"
  c.generate.at_steps = ()
  c.evaluate.at_end = False
  return validate(c)


def _ours(job: dict) -> dict:
  """Runs training steps; returns their figures, and the token ids and settings for TRL."""
  c = config(job)
  run = resolve(c)
  program = run.program
  compiled = compile_program(program)
  params = load_params(run.model, state_sharding(program).params, program.param_dtype, c.seed)
  state = init_state(program, params)
  del params
  launch = Launcher(
    program,
    compiled,
    digest(json.dumps(as_json(c)), compiled.fingerprint),
    run.packed,
    Watchdog(c.watchdog, pathlib.Path(job["out"]).parent),
  )
  shared = {
    "pairs": job["pairs"],
    "row_tokens": program.batch.row_length,
    "logits_chunk": program.step.logits_chunk,
    "dtype": program.step.dtype.name,
    "compile_seconds": compiled.compile_seconds,
    "compiled_peak_bytes": compiled.memory.peak,
  }
  if job["side"] == "sweep":
    pairs = run.train_pairs
    assert isinstance(pairs, list)  # true for a JSON file
    by_length = sorted(pairs, key=pair_length)
    third = len(by_length) // 3
    cases = {"real": pairs, "short": by_length[:third], "long": by_length[-third:]}
    sources = {k: pairs_by_step(run._replace(train_pairs=v), c) for k, v in cases.items()}
    state, _ = _steps(launch, state, sources["short"], WARM)
    done = {}
    for name, source in sources.items():
      state, done[name] = _steps(launch, state, source, job["steps"])
    return {**shared, "cases": done, "peak_bytes": _peak_bytes()}
  source = pairs_by_step(run, c)
  state, steps = _steps(launch, state, source, job["steps"])
  train, simpo = c.train, c.simpo
  return {
    **shared,
    "steps": steps,
    "peak_bytes": _peak_bytes(),
    "compiles": compile_count.compile_count(),
    "tokens": [
      [[ids.tolist() for ids in pair[1:]] for pair in source(step)]
      for step in range(1, job["steps"] + 1)
    ],
    "settings": {
      "beta": simpo.beta,
      "gamma_beta_ratio": simpo.gamma_beta_ratio,
      "learning_rate": train.learning_rate,
      "max_grad_norm": train.max_grad_norm,
    },
  }


def _steps(
  launch: Launcher, state: TrainState, source: Callable[[int], list[PairTokens]], count: int
) -> tuple[TrainState, list[dict[str, Any]]]:
  """Runs `count` training steps; returns the new state and a record of each step."""
  program = launch.program
  model, rows, out = program.step.model, local_rows(program), []
  for step in range(1, count + 1):
    start = time.perf_counter()
    chosen = source(step)
    batch = pack(chosen, program.batch, rows)
    state, report, launched = launch(state, Mode.TRAIN, batch, pair_contents(chosen))
    metrics = jax.tree.map(np.asarray, report.metrics)
    seconds = time.perf_counter() - start
    if not metrics.ok:
      raise UserError(f"step {step} is not finite: loss {metrics.loss}")
    work = step_work(chosen, batch, program.batch, program.step.logits_chunk)
    out.append(
      {
        "seconds": seconds,
        "launch_seconds": launched,
        "loss": float(metrics.loss),
        "grad_norm": float(metrics.grad_norm),
        "tokens": work.tokens,
        "targets": work.targets,
        "rows": work.rows,
        "flops": model_flops(model, work),
        "attention_flops": 3 * attention_flops(model, work.keys),
      }
    )
    common.say(f"step {step}: {seconds:.2f} s, loss {out[-1]['loss']:.6f}")
  return state, out


def _peak_bytes() -> int:
  """Peak memory in bytes: of the device on GPU, of this process on CPU."""
  stats = jax.devices()[0].memory_stats()
  if stats and jax.default_backend() != "cpu":
    return stats["peak_bytes_in_use"]
  return common.peak_rss()


def _limits(job: dict) -> dict[str, float]:
  """Measures the fastest matmul, and the model's matmuls forward and backward.

  Returns:
    `rate`: flops per second of the fastest matmul. `token_seconds`: matmuls of all layers per
    token, in rows of `job["tokens"]`. `target_seconds`: output embedding per response token,
    `job["targets"]` at a time.
  """
  model, dtype = open_model(job["model"]).config, jnp.dtype(job["dtype"])
  T, targets = job["tokens"], job["targets"]
  D, F = model.hidden_size, model.intermediate_size
  q, kv = (n * model.head_dim for n in (model.num_attention_heads, model.num_key_value_heads))
  layer = [(D, q), (D, kv), (D, kv), (q, D), (D, F), (D, F), (F, D)]
  assert sum(a * b for a, b in layer) * model.num_hidden_layers == layer_weights(model)
  square = 2048 if jax.default_backend() == "cpu" else 8192
  return {
    "rate": max(_rate(*s, dtype) for s in ((T, D, F), (T, F, D), (square, square, square))),
    "token_seconds": _products(layer, T, dtype) * model.num_hidden_layers / T,
    "target_seconds": _products([(D, model.vocab_size)], targets, dtype) / targets,
  }


def _rate(m: int, k: int, n: int, dtype: np.dtype) -> float:
  """Flops per second of `[m, k] @ [k, n]`."""
  a, b = jnp.full((m, k), 0.5, dtype), jnp.full((k, n), 0.5, dtype)
  return 2.0 * m * k * n / common.seconds(jax.jit(jnp.matmul), a, b)


def _products(shapes: list[tuple[int, int]], rows: int, dtype: np.dtype) -> float:
  """Seconds of the matmuls of `rows` tokens with matrices of `shapes`, forward and backward."""
  matrices = [jnp.full(s, 1e-3, dtype) for s in shapes]
  inputs = [jnp.ones((rows, a), dtype) for a, _ in shapes]

  def once(_: jax.Array, carry: list[tuple[jax.Array, ...]]) -> list[tuple[jax.Array, ...]]:
    out = []
    for x, _, w in carry:
      y = x @ w  # also used as the gradient
      # Every product feeds the next iteration, so XLA can neither drop nor hoist it.
      out.append((1 + 1e-6 * (y @ w.T), x.T @ y, w))
    return out

  @jax.jit
  def run(inputs: list[jax.Array], matrices: list[jax.Array]) -> list[tuple[jax.Array, ...]]:
    carry = [(x, w, w) for x, w in zip(inputs, matrices, strict=True)]
    return jax.lax.fori_loop(0, LAYERS, once, carry)

  return common.seconds(run, inputs, matrices, runs=3) / LAYERS


if __name__ == "__main__":
  try:
    main(sys.argv[1])
  except UserError as e:
    sys.exit(f"error: {e}")
