"""Training side by side with TRL's CPOTrainer: same weights, same pairs, one run.

  python bench/train.py --model=SmolLM2-135M-Instruct.Q4_1.gguf --data=dpo_en_demo.json
  python bench/train.py ... --max_length=512 --pairs=4 --steps=2 --json=train.json
  python bench/train.py ... --sweep [--sweep_pairs=8 --sweep_pairs=32 --sweep_rows=1]

Ours is the real program of configs/m11.py:smollm2 (without its generation), launched as a
run launches it; TRL has loss_type simpo, cpo_alpha 0, and the same token ids in the same
steps. Only pairs that need no truncation take part, because the two truncate differently.
Each side has a process of its own, with as many threads; the first step does not count.
Where memory does not suffice for TRL with all pairs of a step at once, it accumulates
gradients over the largest micro-batch that lives (`--peer_micro=fastest`: over the fastest
of those that live). The run fails if the losses of the first step are not the same.

`--sweep` is ours alone, over pairs per step, row length and pairs' lengths (real; the
shortest third; the longest third): how the cost of a pair grows.

ours, theirs, floor: seconds per pair, median over steps, data and metrics included; ratio:
theirs over ours. The floor is the time that the model's own matrix products take, forward
and backward, for the tokens that count (attention's at the best rate). mfu: the model's
flops over our time, as a part of the best matrix product's rate. Both limits are measured
in the same run, right after our steps. peak_bytes: of the whole process on CPU, of the
device's memory on GPU.
"""

import importlib.util
import json
import os
import pathlib
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import common
import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from simpo_jax import monitor
from simpo_jax.data.load_tokenizer import load_tokenizer
from simpo_jax.data.packing import pack, pair_length
from simpo_jax.data.pairs import load_pairs
from simpo_jax.data.pairs import row_length as row_tokens
from simpo_jax.data.sources import read_rows
from simpo_jax.errors import UserError
from simpo_jax.launch import Launcher
from simpo_jax.ledger import Mode, digest
from simpo_jax.plan.workload import attention_flops, layer_weights, model_flops, step_work
from simpo_jax.prepare import cores
from simpo_jax.program import compile_program, init_state, own_rows, state_sharding
from simpo_jax.resolve import resolve
from simpo_jax.run import pairs_by_step
from simpo_jax.watchdog import Watchdog
from simpo_jax.weights import load_params, open_model

HERE = pathlib.Path(__file__).resolve().parent
WARM = 1  # steps that do not count
# Relative, of the first step. TRL takes log-probabilities of logits in bfloat16: for 2 pairs
# its loss was 2.4% off the float32 one, ours 0.3%.
LOSS_TOLERANCE = {"float32": 1e-3, "bfloat16": 5e-2}
LAYERS = 8  # of the model whose products are timed at once
PEER = "CPOTrainer"
INSTALL = "TRL is not installed: pip install -e '.[bench]', or leave it out with --no_peer"

_MODEL = flags.DEFINE_string("model", None, "folder, .gguf file or hub id", required=True)
_DATA = flags.DEFINE_string("data", None, "a file of preference pairs", required=True)
_MAX_LENGTH = flags.DEFINE_integer("max_length", 1024, "tokens of prompt and one response")
_PAIRS = flags.DEFINE_integer("pairs", 8, "per optimizer step")
_STEPS = flags.DEFINE_integer("steps", 0, "timed steps; 0: 5, of each case of the sweep 1")
_DTYPE = flags.DEFINE_enum(
  "dtype", "auto", ["auto", "float32", "bfloat16"], "to compute in; weights are float32"
)
_JSON = flags.DEFINE_string("json", None, "a file for the result")
_NO_PEER = flags.DEFINE_bool("no_peer", False, "ours alone")
_PEER_MICRO = flags.DEFINE_string(
  "peer_micro", "largest", "TRL's pairs per forward pass: largest | fastest, or a number"
)
_PEER_CHECKPOINTING = flags.DEFINE_bool(
  "peer_checkpointing", False, "TRL recomputes activations, which is its default"
)
_SWEEP = flags.DEFINE_bool("sweep", False, "ours alone over sizes")
_SWEEP_PAIRS = flags.DEFINE_multi_integer("sweep_pairs", [8, 16, 32], "per step; repeat it")
_SWEEP_ROWS = flags.DEFINE_multi_integer("sweep_rows", [1, 2], "in default lengths; repeat it")
_JOB = flags.DEFINE_string("job", None, "for the processes that this one starts")


def main(_):
  """Runs both sides, or the sweep, and prints the table."""
  if _JOB.value:
    return _work(json.loads(pathlib.Path(_JOB.value).read_text()))
  peer = not (_NO_PEER.value or _SWEEP.value)
  if peer and any(importlib.util.find_spec(name) is None for name in ("torch", "trl")):
    raise UserError(INSTALL)
  if any(_PAIRS.value % size for size in _micro_sizes()):
    raise UserError(f"--peer_micro={_PEER_MICRO.value} must divide --pairs={_PAIRS.value}")
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    chosen = _choose_pairs(folder / "pairs.json")
    if _SWEEP.value:
      rows = _sweep(folder)
      result = {"name": "training sweep", "cases": rows}
    else:
      result = _side_by_side(folder, peer)
      rows = result.pop("rows")
  result |= {"pairs": chosen, "max_length": _MAX_LENGTH.value}
  where = common.machine()  # only now: on GPU, it takes the memory that the others needed
  result |= {name: where.pop(name) for name in ("device", "devices", "date")}
  result["versions"] = where
  if _JSON.value:
    pathlib.Path(_JSON.value).write_text(json.dumps(result, indent=2) + "\n")
  title = f"training, {chosen['used']} of {chosen['total']} pairs: those of up to max_length "
  common.report(f"{title}{_MAX_LENGTH.value}", rows, as_json=False)
  for line in result.get("notes", ()):
    print(line)


# --- the parent's part ---------------------------------------------------------------------


def _choose_pairs(path: pathlib.Path) -> dict[str, int]:
  """Writes the rows that both sides take whole; how many of how many."""
  data = _config().data
  data.update(max_length=2**20, truncation="prompt_first")
  pairs, report = load_pairs(data, load_tokenizer(_MODEL.value), (_DATA.value,), 0)

  def fits(p):
    return len(p.prompt) + max(len(p.chosen), len(p.rejected)) <= _MAX_LENGTH.value

  rows = dict(read_rows(_DATA.value))
  used = [rows[p.id] for p in pairs if fits(p)]
  least = max(_SWEEP_PAIRS.value) * 3 if _SWEEP.value else _PAIRS.value
  if len(used) < least:
    raise UserError(
      f"{len(used)} pairs of {_DATA.value} need no truncation to --max_length="
      f"{_MAX_LENGTH.value}, and {least} are needed; raise it, or give more pairs"
    )
  path.write_text(json.dumps(used))
  return {"used": len(used), "total": report.total}


def _side_by_side(folder: pathlib.Path, peer: bool) -> dict:
  """The contract's fields, and the table's rows."""
  steps = WARM + (_STEPS.value or 5)
  base = {"pairs": _PAIRS.value, "row_length": 0, "data": str(folder / "pairs.json")}
  common.say(f"simpo_jax: {steps} steps of {_PAIRS.value} pairs")
  ours = _start(folder, {**base, "side": "ours", "steps": steps})
  limits = {"side": "limits", "tokens": ours["row_tokens"], "targets": ours["logits_chunk"]}
  limits |= base | {"dtype": ours["dtype"]}
  common.say("the machine's matrix products")
  measured = [_start(folder, limits)]
  counted = ours["steps"][WARM:]
  per_pair = statistics.median(s["seconds"] for s in counted) / _PAIRS.value
  floors = [_floor(s, measured[0]) for s in counted]
  result = {
    "name": "training",
    "unit": "seconds per pair",
    "ours": per_pair,
    "theirs": None,
    "ratio": None,
    "peer": None,
    "floor": statistics.median(floors) / _PAIRS.value,
    "fraction_of_floor": _median(f / s["seconds"] for f, s in zip(floors, counted, strict=True)),
    "mfu": _median(s["flops"] / s["seconds"] for s in counted) / measured[0]["rate"],
    "dtype": ours["dtype"],
    "pairs_per_step": _PAIRS.value,
    "threads": cores(),  # XLA takes as many as it may be scheduled on
    "peak_bytes": {"ours": ours["peak_bytes"], "theirs": None},
    "compiled_peak_bytes": ours["compiled_peak_bytes"],
    "compile_seconds": ours["compile_seconds"],
    "compiles": ours["compiles"],
    "ours_steps": ours["steps"],
  }
  padded = _median(s["rows"] * ours["row_tokens"] for s in counted)
  useful = _median(s["tokens"] / s["seconds"] for s in counted)
  rows = [_row("simpo_jax", per_pair, useful, padded, ours)]
  notes = []
  if peer:
    theirs = _peer(folder, ours)
    measured.append(_start(folder, limits))
    result["peer"], result["theirs_tried"] = theirs["text"], theirs["tried"]
    notes.append(f"peer: {theirs['text']}")
    if theirs["steps"]:
      timed = theirs["steps"][WARM:]
      result["theirs"] = statistics.median(s["seconds"] for s in timed) / _PAIRS.value
      result["ratio"] = result["theirs"] / per_pair
      result["theirs_steps"] = theirs["steps"]
      result["peak_bytes"]["theirs"] = theirs["peak_bytes"]
      result["first_step"] = _same_work(ours, theirs)
      useful = _median(s["tokens"] / t["seconds"] for s, t in zip(counted, timed, strict=True))
      padded = _median(_padded(pairs, theirs["micro"]) for pairs in ours["tokens"][WARM:])
      rows.append(_row(PEER, result["theirs"], useful, padded, theirs))
      notes.append(
        "{:.2f} times the pairs per second; losses of the first step differ by {:.1e}, gradient "
        "norms by {:.1e}".format(
          result["ratio"], *(result["first_step"][k] for k in ("loss", "grad_norm"))
        )
      )
  rates = [m["rate"] for m in measured]
  result["matmul_flops_per_second"] = rates
  result["notes"] = notes
  notes.append(
    f"ours: {result['fraction_of_floor']:.2f} of the floor ({result['floor']:.3g} s per pair), "
    f"mfu {result['mfu']:.2f} of {rates[0] / 1e9:,.0f} GFLOP/s"
    + (f" (after TRL's steps {rates[1] / 1e9:,.0f})" if rates[1:] else "")
  )
  return {**result, "rows": rows}


def _row(case, per_pair, useful, computed, side) -> dict:
  """A line of the table: medians over steps; loss and gradient norm of the first.

  Args:
    useful: tokens per second, each prompt counted once.
    computed: tokens of a step, padding and repeated prompts included.
  """
  return {
    "case": case,
    "s/pair": per_pair,
    "tokens/s": useful,
    "computed": computed,
    "peak_GiB": side["peak_bytes"] / 2**30,
    "loss": f"{side['steps'][0]['loss']:.6f}",
    "grad_norm": f"{side['steps'][0]['grad_norm']:.4f}",
  }


def _peer(folder: pathlib.Path, ours: dict) -> dict:
  """TRL with the micro-batch that `--peer_micro` asks for; its `text` says what was tried."""
  model = _MODEL.value
  if model.endswith(".gguf"):
    common.say("transformers writes the GGUF as a folder")
    model = str(folder / "model")
    convert = {"work": "convert", "model": str(pathlib.Path(_MODEL.value).resolve())}
    _start(folder, {**convert, "folder": model}, "train_trl.py")
  job = {
    "work": "train",
    "model": model,
    "steps": ours["tokens"],
    "threads": cores(),
    "dtype": ours["dtype"],
    "max_length": _MAX_LENGTH.value,
    "checkpointing": _PEER_CHECKPOINTING.value,
    "folder": str(folder / "trl"),
    **ours["settings"],
  }
  tried, lived = {}, []
  for micro in _micro_sizes():
    common.say(f"TRL: {len(ours['tokens'])} steps of {_PAIRS.value} pairs, {micro} at once")
    sizes = {"micro": micro, "accumulate": _PAIRS.value // micro}
    done = _start(folder, {**job, **sizes}, "train_trl.py")
    if done is None:
      tried[micro] = None
      continue
    lived.append({**done, **sizes})
    tried[micro] = _median(s["seconds"] for s in done["steps"][WARM:]) / _PAIRS.value
    if _PEER_MICRO.value != "fastest":
      break
  dead = [str(m) for m, seconds in tried.items() if seconds is None]
  killed = f"; out of memory with {', '.join(dead)} at once" if dead else ""
  if not lived:
    return {"steps": None, "tried": tried, "text": f"{PEER}{killed}: no step done"}
  best = min(lived, key=lambda d: tried[d["micro"]])
  others = [f"{m} at once: {s:.3g} s" for m, s in tried.items() if s and m != best["micro"]]
  text = (
    f"{PEER}, {best['micro']} pairs at once x {best['accumulate']} accumulated, "
    f"{best['attention']} attention, checkpointing {'on' if _PEER_CHECKPOINTING.value else 'off'}"
    f"{killed}" + (f" ({', '.join(others)} per pair)" if others else "")
  )
  return {**best, "tried": tried, "text": text}


def _micro_sizes() -> list[int]:
  """TRL's micro-batches to try, the largest first; all divide the pairs of a step."""
  if _PEER_MICRO.value.isdigit():
    return [max(1, int(_PEER_MICRO.value))]
  if _PEER_MICRO.value not in ("largest", "fastest"):
    raise UserError(f"--peer_micro={_PEER_MICRO.value} is not largest, fastest or a number")
  sizes = [_PAIRS.value]
  while sizes[-1] % 2 == 0:
    sizes.append(sizes[-1] // 2)
  return sizes if sizes[-1] == 1 else [*sizes, 1]


def _same_work(ours: dict, theirs: dict) -> dict[str, float]:
  """Relative differences of the first step, before any update.

  Raises:
    UserError: of the loss, too large a one for the same work.
  """
  a, b = ours["steps"][0], theirs["steps"][0]
  out = {k: abs(a[k] - b[k]) / abs(b[k]) for k in ("loss", "grad_norm")}
  if not out["loss"] <= LOSS_TOLERANCE[ours["dtype"]]:
    raise UserError(
      f"not the same work: the loss of the first step is {a['loss']} here and {b['loss']} in TRL"
    )
  return out


def _padded(pairs: list, micro: int) -> int:
  """Tokens that TRL computes in a step: two sequences a pair, padded to the longest at once."""
  longest = [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in pairs]
  return sum(2 * micro * max(longest[i : i + micro]) for i in range(0, len(longest), micro))


def _floor(step: dict, limits: dict) -> float:
  """Seconds that a step's matrix products take by themselves."""
  products = limits["token_seconds"] * step["tokens"] + limits["target_seconds"] * step["targets"]
  return products + step["attention_flops"] / limits["rate"]


def _sweep(folder: pathlib.Path) -> list[dict]:
  rows, rate = [], None
  for pairs in _SWEEP_PAIRS.value:
    for factor in _SWEEP_ROWS.value:
      length = factor * row_tokens(_config().data)
      common.say(f"{pairs} pairs per step, rows of {length}")
      job = {"pairs": pairs, "row_length": length, "data": str(folder / "pairs.json")}
      done = _start(folder, {**job, "side": "sweep", "steps": _STEPS.value or 1})
      if rate is None:
        sizes = {"tokens": done["row_tokens"], "targets": done["logits_chunk"]}
        rate = _start(folder, {**job, **sizes, "side": "limits", "dtype": done["dtype"]})["rate"]
      rows += [_sweep_row(name, steps, done, rate) for name, steps in done["cases"].items()]
  return rows


def _sweep_row(name: str, steps: list[dict], done: dict, rate: float) -> dict:
  pairs, length = done["pairs"], done["row_tokens"]
  tokens = sum(s["tokens"] for s in steps)
  return {
    "case": name,
    "pairs": pairs,
    "row": length,
    "tokens/pair": tokens / len(steps) / pairs,
    "s/pair": _median(s["seconds"] for s in steps) / pairs,
    "tokens/s": _median(s["tokens"] / s["seconds"] for s in steps),
    "packing": tokens / sum(s["rows"] * length for s in steps),
    "mfu": _median(s["flops"] / s["seconds"] for s in steps) / rate,
    "peak_GiB": done["peak_bytes"] / 2**30,
  }


def _start(folder: pathlib.Path, job: dict, script: str = "train.py") -> dict | None:
  """Runs a job in a process of its own and returns its result; None: out of memory."""
  paths = {name: folder / name for name in ("job.json", "out.json", "log.txt")}
  paths["out.json"].unlink(missing_ok=True)
  paths["job.json"].write_text(json.dumps({**job, "out": str(paths["out.json"])}))
  command = [sys.executable, str(HERE / script)]
  if script == "train.py":
    command += [*sys.argv[1:], f"--job={paths['job.json']}"]
  else:
    command.append(str(paths["job.json"]))
  # One GPU each, however many there are: the first.
  gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
  env = {**os.environ, "CUDA_VISIBLE_DEVICES": gpu}
  with open(paths["log.txt"], "w") as log:
    code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=env).returncode
  if code in (-9, 137) and job.get("work") == "train":
    return None
  if code:
    print(*paths["log.txt"].read_text().splitlines()[-20:], sep="\n", file=sys.stderr)
    raise UserError(
      f"{script} {job.get('side', '')} ended with code {code}; its last lines are above"
    )
  return json.loads(paths["out.json"].read_text())


def _median(values) -> float:
  return statistics.median(list(values))


# --- our processes' part -------------------------------------------------------------------


def _work(job: dict) -> None:
  result = {"ours": _ours, "sweep": _ours, "limits": _limits}[job["side"]](job)
  pathlib.Path(job["out"]).write_text(json.dumps(result))


def _config(job: dict | None = None):
  """configs/m11.py:smollm2, without what comes after training."""
  c = runpy.run_path(str(HERE.parent / "configs" / "m11.py"))["get_config"]("smollm2")
  c.model.source = _MODEL.value
  c.model.compute_dtype = _DTYPE.value
  c.data.max_length = _MAX_LENGTH.value
  c.data.max_prompt_length = min(c.data.max_prompt_length, _MAX_LENGTH.value // 2)
  c.train.schedule = "constant"
  c.generate.at_steps = ()
  c.evaluate.at_end = False
  if job:
    c.data.train = (job["data"],)
    c.data.row_length = job["row_length"]
    c.train.batch_size = job["pairs"]
  return c


def _ours(job: dict) -> dict:
  """Steps as a run makes them: figures of each, and what the other side needs to follow."""
  config = _config(job)
  run = resolve(config)
  program = run.program
  compiled = compile_program(program)
  params = load_params(run.model, state_sharding(program).params, program.param_dtype, config.seed)
  state = init_state(program, params)
  del params
  launch = Launcher(
    program,
    compiled,
    digest(config.to_json(), compiled.fingerprint),
    run.packed,
    Watchdog(config.watchdog, pathlib.Path(job["out"]).parent),
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
    by_length = sorted(run.train_pairs, key=pair_length)
    third = len(by_length) // 3
    cases = {"real": run.train_pairs, "short": by_length[:third], "long": by_length[-third:]}
    sources = {k: pairs_by_step(run._replace(train_pairs=v), config) for k, v in cases.items()}
    state, _ = _steps(launch, state, sources["short"], WARM)
    done = {}
    for name, source in sources.items():
      state, done[name] = _steps(launch, state, source, job["steps"])
    return {**shared, "cases": done, "peak_bytes": _peak_bytes()}
  source = pairs_by_step(run, config)
  state, steps = _steps(launch, state, source, job["steps"])
  train, simpo = config.train, config.simpo
  return {
    **shared,
    "steps": steps,
    "peak_bytes": _peak_bytes(),
    "compiles": monitor.compile_count(),
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


def _steps(launch: Launcher, state, source: Callable[[int], list], count: int):
  """The state after so many training steps, and a record of each."""
  program = launch.program
  model, own, out = program.step.model, own_rows(program), []
  for step in range(1, count + 1):
    start = time.perf_counter()
    chosen = source(step)
    batch = pack(chosen, program.batch, own)
    state, report, launched = launch(state, Mode.TRAIN, batch)
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
  """The most memory that this process, or on GPU its device, ever held."""
  stats = jax.devices()[0].memory_stats()
  if stats and jax.default_backend() != "cpu":
    return stats["peak_bytes_in_use"]
  return common.peak_rss()


def _limits(job: dict) -> dict[str, float]:
  """Flops per second of the best matrix product; seconds of the model's, forward and backward.

  Of the model's layers per token (`token_seconds`), in rows of `tokens`; of the output
  embedding per response token (`target_seconds`), `targets` at a time.
  """
  model, dtype = open_model(_MODEL.value).config, jnp.dtype(job["dtype"])
  T, U, D, F = job["tokens"], job["targets"], model.hidden_size, model.intermediate_size
  q, kv = (n * model.head_dim for n in (model.num_attention_heads, model.num_key_value_heads))
  layer = [(D, q), (D, kv), (D, kv), (q, D), (D, F), (D, F), (F, D)]
  assert sum(a * b for a, b in layer) * model.num_hidden_layers == layer_weights(model)
  square = 2048 if jax.default_backend() == "cpu" else 8192
  return {
    "rate": max(_rate(*s, dtype) for s in ((T, D, F), (T, F, D), (square, square, square))),
    "token_seconds": _products(layer, T, dtype) * model.num_hidden_layers / T,
    "target_seconds": _products([(D, model.vocab_size)], U, dtype) / U,
  }


def _rate(m: int, k: int, n: int, dtype) -> float:
  """Flops per second of `[m, k] @ [k, n]`."""
  a, b = jnp.full((m, k), 0.5, dtype), jnp.full((k, n), 0.5, dtype)
  return 2.0 * m * k * n / common.seconds(jax.jit(jnp.matmul), a, b)


def _products(shapes: list[tuple[int, int]], rows: int, dtype) -> float:
  """Seconds for the products of `rows` tokens with matrices of these shapes and their gradients."""
  matrices = [jnp.full(s, 1e-3, dtype) for s in shapes]
  inputs = [jnp.ones((rows, a), dtype) for a, _ in shapes]

  def once(_, carry):
    out = []
    for x, _, w in carry:
      y = x @ w  # stands in for the gradient, too
      out.append((1 + 1e-6 * (y @ w.T), x.T @ y, w))  # nothing can be dropped, or taken out
    return out

  @jax.jit
  def run(inputs, matrices):
    carry = [(x, w, w) for x, w in zip(inputs, matrices, strict=True)]
    return jax.lax.fori_loop(0, LAYERS, once, carry)

  return common.seconds(run, inputs, matrices, runs=3) / LAYERS


if __name__ == "__main__":
  app.run(common.answering(main))
